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

// errRuns says that an operation runs in this process already.
var errRuns = errors.New("the operation runs already")

// errMoved is the answer to a write that came too late: see execution.write.
var errMoved = errors.New("the operation has gone on")

// conflictTries is how often a transaction is made anew because a record that it also writes has changed.
const conflictTries = 100

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
	// crossing says that a write may have happened that takes the operation past its point of no return: one was tried in this
	// process, or perhaps by the one before. Only the operation's own goroutine uses it.
	crossing bool

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
	if e.running[rec.Key] != nil {
		x.cancel(errRuns)
		return nil, errRuns
	}
	e.running[rec.Key] = x
	return x, nil
}

// begin does the execution's work in the background, unless the engine is closed.
func (x *execution) begin(work func()) {
	x.e.mu.Lock()
	defer x.e.mu.Unlock()
	if x.e.ctx.Err() != nil {
		return
	}
	x.e.wg.Go(func() {
		defer x.forget()
		work()
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

// more are further writes for the transaction that changes the record, made anew for each try.
type more func() ([]store.Op, error)

// write changes the record and writes it, with more in the same transaction. It copes with the one change that others
// make, a request to cancel: with heed set, such a request is errCancelAsked, and nothing was written. errMoved: an earlier
// write, whose outcome was not known, has happened after all and taken the operation further than it is here.
func (x *execution) write(heed bool, c change, with ...more) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.writeLocked(heed, c, with...)
}

func (x *execution) writeLocked(heed bool, c change, with ...more) error {
	for n := 0; ; n++ {
		if x.abandoned() {
			return errAbandoned
		}
		if heed && x.rec.Value.CancelAsked {
			return errCancelAsked
		}
		next := store.Record[record]{Key: x.id, Value: x.rec.Value.clone(), Revision: x.rec.Revision}
		c.apply(&next.Value)
		next.Value.UpdatedAt = c.at
		ops := []store.Op{x.e.operations.OpUpdate(next)}
		for _, make := range with {
			further, err := make()
			if err != nil {
				return err
			}
			ops = append(ops, further...)
		}
		revision, err := x.e.store.Txn(x.base, ops...)
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
		if r := stored.Value; r.Host != x.rec.Value.Host || r.State.Final() || r.Index > x.rec.Value.Index && r.Index >= x.kind.noReturn {
			x.rec = stored
			return errMoved
		}
		if n >= conflictTries {
			return err
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
