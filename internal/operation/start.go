package operation

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"time"

	"polder/api"
	"polder/internal/store"
)

// Start creates an operation and runs it in the background: it goes on when ctx ends. It blocks for one write. A lock that is
// held is api.Conflict.
func Start[S any](ctx context.Context, e *Engine, kind string, req Request, state S) (api.Operation, error) {
	data, err := json.Marshal(state)
	if err != nil {
		return api.Operation{}, api.Errorf(api.Internal, "%s %s: encode state: %w", kind, req.Target, err)
	}
	return e.start(ctx, kind, req, data)
}

func (e *Engine) start(ctx context.Context, name string, req Request, data json.RawMessage) (api.Operation, error) {
	e.mu.Lock()
	k := e.kinds[name]
	e.mu.Unlock()
	if k == nil {
		return api.Operation{}, api.Errorf(api.Internal, "operation kind %q is not known", name)
	}
	if err := context.Cause(e.ctx); err != nil {
		return api.Operation{}, api.Errorf(api.Unavailable, "%s %s: %w: try again when the daemon runs again", name, req.Target, err)
	}
	now := time.Now().UTC()
	rec := record{
		Kind: name, Target: req.Target, Host: cmp.Or(req.Host, e.host), State: api.OperationRunning, NoReturn: k.noReturn,
		Locks: req.merge(), Frees: req.Frees, Data: data, CreatedAt: now, UpdatedAt: now,
	}
	for _, step := range k.steps {
		rec.Steps = append(rec.Steps, api.OperationStep{Name: step})
	}
	if rec.Host == e.host {
		rec.Steps[0].StartedAt = &now
	}
	for {
		op, err := e.create(ctx, k, newID(), rec)
		switch api.KindOf(err) {
		case "":
			return op, nil
		case api.Exists: // somebody has a lock, or (hardly) the id is taken
			if err := e.busy(ctx, rec.Locks); err != nil {
				return api.Operation{}, err
			}
		default:
			return api.Operation{}, err
		}
	}
}

// create writes the record and its locks, and begins the operation if it is this host's. The execution is known before, so
// that a cancel that comes at once finds it.
func (e *Engine) create(ctx context.Context, k *kind, id string, rec record) (api.Operation, error) {
	if rec.Frees {
		ctx = store.Freeing(ctx)
	}
	ops := []store.Op{e.operations.OpCreate(id, rec)}
	for _, lock := range rec.Locks {
		ops = append(ops, e.claim(lock, id)...)
	}
	// Not cut off with the caller: what it is about to do must not be left to nobody.
	ctx = context.WithoutCancel(ctx)
	if rec.Host != e.host {
		_, err := e.store.Txn(ctx, ops...)
		return rec.operation(id), err
	}
	x, err := e.newExecution(k, store.Record[record]{Key: id, Value: rec.clone()})
	if err != nil {
		return api.Operation{}, err
	}
	if x.rec.Revision, err = e.store.Txn(ctx, ops...); err != nil {
		x.forget()
		if api.KindOf(err) != api.Exists {
			e.takeUpOne(id) // it may have been written although the answer was lost
		}
		return api.Operation{}, err
	}
	op := x.operation() // before it runs, so that the caller sees the beginning
	x.begin(func() { x.run(nil) })
	return op, nil
}

func newID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
