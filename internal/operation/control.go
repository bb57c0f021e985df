package operation

import (
	"context"
	"errors"
	"slices"
	"time"

	"polder/api"
	"polder/internal/store"
)

// Get reads one operation; api.NotFound.
func (e *Engine) Get(ctx context.Context, id string) (api.Operation, error) {
	rec, err := e.operations.Get(ctx, id)
	if err != nil {
		return api.Operation{}, err
	}
	return rec.Value.operation(id), nil
}

// List reads all operations of all hosts, the newest first.
func (e *Engine) List(ctx context.Context) ([]api.Operation, error) {
	recs, err := e.operations.List(ctx)
	if err != nil {
		return nil, err
	}
	ops := make([]api.Operation, 0, len(recs))
	for _, rec := range recs {
		ops = append(ops, rec.Value.operation(rec.Key))
	}
	slices.SortStableFunc(ops, func(a, b api.Operation) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return ops, nil
}

// Cancel asks an operation on any host to stop and be undone, and returns without waiting for that. It is api.Precondition when
// the operation has ended, or has passed its point of no return; asking twice is no error.
func (e *Engine) Cancel(ctx context.Context, id string) error {
	asked := api.Errorf(api.Cancelled, "asked already")
	_, err := e.operations.Modify(ctx, id, func(r *record) error {
		switch {
		case r.State.Final():
			return api.Errorf(api.Precondition, "cancel operation %s (%s): it has ended: %s", id, r.Kind, r.State)
		case r.CancelAsked || r.State == api.OperationUndoing:
			return asked
		case !r.cancellable():
			return api.Errorf(api.Precondition, "cancel operation %s (%s): it has passed its point of no return and will be finished", id, r.Kind)
		}
		r.CancelAsked = true
		return nil
	})
	if errors.Is(err, asked) {
		return nil
	}
	return err
}

// heed ends the step under way of operations that are to be cancelled, and takes up those that another host has started for
// this one, or handed over.
func (e *Engine) heed(changes <-chan store.Change[record]) {
	for c := range changes {
		if c.Value == nil || c.Value.Host != e.host {
			continue
		}
		e.mu.Lock()
		x, taking := e.running[c.Key], e.taking
		e.mu.Unlock()
		switch {
		case x != nil && c.Value.CancelAsked:
			x.cancel(errCancelAsked)
		case x == nil && taking && !c.Value.State.Final():
			e.takeUpOne(c.Key)
		}
	}
}

// Wait blocks until the operation has ended, or ctx is done, and returns its end. each (may be nil) is called with every
// change, the state at the call and the end included. That the operation failed is not an error of Wait: see its Error.
func (e *Engine) Wait(ctx context.Context, id string, each func(api.Operation)) (api.Operation, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Watched before it is read, from now on: a watch that begins in the past, be it by one revision, gets nothing until
	// etcd's next round for such watches, up to 100 ms later.
	changes := e.operations.WatchKey(ctx, id, 0)
	rec, err := e.operations.Get(ctx, id)
	if err != nil {
		return api.Operation{}, err
	}
	if each == nil {
		each = func(api.Operation) {}
	}
	op := rec.Value.operation(id)
	each(op)
	if op.State.Final() {
		return op, nil
	}
	for c := range changes {
		switch {
		case c.Err == nil && c.Revision <= rec.Revision:
			continue
		case c.Reset:
			continue
		case c.Err != nil:
			return op, c.Err
		case c.Value == nil:
			return op, api.Errorf(api.NotFound, "operation %q not found", id)
		}
		op = c.Value.operation(id)
		each(op)
		if op.State.Final() {
			return op, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return op, api.Errorf(api.Cancelled, "wait for operation %s: %w", id, err)
	}
	return op, api.Errorf(api.Unavailable, "wait for operation %s: the store was closed", id)
}

// Change is one change of one operation.
type Change struct {
	Operation api.Operation
	Revision  int64 // of the store
}

// Watch reports every change of every operation from the store's revision `from` on (0: from now), until ctx is done.
// Operations that are forgotten are not reported.
func (e *Engine) Watch(ctx context.Context, from int64) <-chan Change {
	out := make(chan Change)
	changes := e.operations.Watch(ctx, from)
	go func() {
		defer close(out)
		for c := range changes {
			if c.Value == nil {
				continue
			}
			select {
			case out <- Change{c.Value.operation(c.Key), c.Revision}:
			case <-ctx.Done():
			}
		}
	}()
	return out
}

// How long, and how many, operations that have ended are kept.
const (
	keepFor    = 24 * time.Hour
	keepCount  = 1000
	pruneEvery = time.Hour
	pruneEnds  = 100 // also after so many operations
)

// pruneNowAndThen forgets old operations of this host.
func (e *Engine) pruneNowAndThen() {
	ticker := time.NewTicker(pruneEvery)
	defer ticker.Stop()
	for ended := 0; ; {
		select {
		case <-e.ctx.Done():
			return
		case <-e.ends:
			if ended++; ended < pruneEnds {
				continue
			}
		case <-ticker.C:
		}
		ended = 0
		if err := e.prune(e.ctx, time.Now()); err != nil && e.ctx.Err() == nil {
			e.log.Warn("old operations can not be deleted", "error", err)
		}
	}
}

func (e *Engine) prune(ctx context.Context, now time.Time) error {
	recs, err := e.operations.List(ctx)
	if err != nil {
		return err
	}
	recs = slices.DeleteFunc(recs, func(r store.Record[record]) bool {
		return !r.Value.State.Final() || r.Value.Host != e.host
	})
	slices.SortFunc(recs, func(a, b store.Record[record]) int { return b.Value.UpdatedAt.Compare(a.Value.UpdatedAt) })
	for i, rec := range recs {
		if i < keepCount && now.Sub(rec.Value.UpdatedAt) < keepFor {
			continue
		}
		if err := e.operations.Delete(ctx, rec.Key); err != nil && api.KindOf(err) != api.NotFound {
			return err
		}
	}
	return nil
}
