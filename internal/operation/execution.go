package operation

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"polder/api"
	"polder/internal/store"
)

// errAbandoned ends an execution without a further word to the store: the engine was closed (or killed, in a test).
var errAbandoned = errors.New("operation abandoned")

// errCancelAsked is the cause of a step's context once somebody asked for the operation to stop.
var errCancelAsked = errors.New("cancelled")

// execution is one operation under way in this process.
type execution struct {
	e      *Engine
	kind   *kind
	id     string
	target string
	locks  []Lock
	steps  steps
	log    *slog.Logger

	// base is the context of undos; it ends with the engine. forward is that of steps; it ends when the operation is
	// cancelled, too.
	base, forward context.Context
	cancel        context.CancelCauseFunc

	progress progress

	mu  sync.Mutex // guards rec; held while rec is written
	rec store.Record[record]

	resultMu sync.Mutex
	result   json.RawMessage
}

func (e *Engine) newExecution(k *kind, rec store.Record[record]) (*execution, error) {
	x := &execution{
		e: e, kind: k, id: rec.Key, target: rec.Value.Target, locks: rec.Value.Locks,
		rec: rec, result: rec.Value.Result,
		log: e.log.With("op", rec.Key, "kind", k.name, "target", rec.Value.Target),
	}
	x.progress.write = x.publish
	x.base = e.ctx
	if rec.Value.Frees {
		x.base = store.Freeing(e.ctx)
	}
	x.forward, x.cancel = context.WithCancelCause(x.base)
	var err error
	if x.steps, err = k.bind(x, rec.Value.Data); err != nil {
		x.cancel(err)
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running[rec.Key] = x
	return x, nil
}

// begin runs the execution in the background, unless the engine is closed. back, when set, is why it is undone instead of
// done.
func (x *execution) begin(back error) {
	x.e.mu.Lock()
	defer x.e.mu.Unlock()
	if x.e.ctx.Err() != nil {
		return
	}
	x.e.wg.Go(func() {
		defer x.forget()
		x.run(back)
	})
}

func (x *execution) forget() {
	x.cancel(errAbandoned)
	x.progress.reset()
	x.e.mu.Lock()
	delete(x.e.running, x.id)
	x.e.mu.Unlock()
	select {
	case x.e.ends <- struct{}{}:
	default:
	}
}

func (x *execution) operation() api.Operation {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rec.Value.operation(x.id)
}

// index is the step that is being done or undone.
func (x *execution) index() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rec.Value.Index
}

// abandoned says whether the engine lets go of its operations, or the store has stopped.
func (x *execution) abandoned() bool {
	select {
	case <-x.e.ctx.Done():
	case <-x.e.store.Failed():
	default:
		return false
	}
	return true
}

func (x *execution) setResult(v any) {
	text, err := json.Marshal(v)
	if err != nil {
		x.log.Error("the operation's result can not be encoded", "error", err)
		return
	}
	x.resultMu.Lock()
	defer x.resultMu.Unlock()
	x.result = text
}

// change is one change of the record. at becomes its UpdatedAt, by which a write that did happen is known although its
// answer was lost.
type change struct {
	at    time.Time
	apply func(*record)
}

func newChange(apply func(*record)) change { return change{time.Now().UTC(), apply} }

// write changes the record and writes it, with more in the same transaction. It copes with the one change that others
// make, a request to cancel: with heed set, such a request is errCancelAsked, and nothing was written.
func (x *execution) write(heed bool, c change, more ...store.Op) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.writeLocked(heed, c, more...)
}

func (x *execution) writeLocked(heed bool, c change, more ...store.Op) error {
	for {
		if x.abandoned() {
			return errAbandoned
		}
		if heed && x.rec.Value.CancelAsked {
			return errCancelAsked
		}
		next := store.Record[record]{Key: x.id, Value: x.rec.Value.clone(), Revision: x.rec.Revision}
		c.apply(&next.Value)
		next.Value.UpdatedAt = c.at
		revision, err := x.e.store.Txn(x.base, append([]store.Op{x.e.operations.OpUpdate(next)}, more...)...)
		if err == nil {
			next.Revision = revision
			x.rec = next
			return nil
		}
		if x.abandoned() {
			return errAbandoned
		}
		if api.KindOf(err) != api.Conflict {
			return err
		}
		stored, err := x.e.operations.Get(x.base, x.id)
		if err != nil {
			return err
		}
		if stored.Value.UpdatedAt.Equal(c.at) {
			x.rec = stored
			return nil
		}
		x.rec.Revision, x.rec.Value.CancelAsked = stored.Revision, stored.Value.CancelAsked
	}
}

// publish writes the progress of the step under way, or gives it up: it is not important.
func (x *execution) publish(step int, p api.Progress) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.progress.current(step) {
		return
	}
	err := x.writeLocked(false, newChange(func(r *record) { r.Progress = &p }))
	if err != nil && !errors.Is(err, errAbandoned) {
		x.log.Debug("progress was not written", "error", err)
	}
}
