package operation

import (
	"context"
	"errors"
	"time"

	"polder/api"
	"polder/internal/store"
)

// Abandon ends all operations that a host was to run and never will, because it was taken out of the cluster: they have failed, and
// their locks are free. What they have done is not undone. It blocks for one write each; one that can't be ended does not keep out
// others. Should that host run after all, the first write of an operation of its own finds it ended.
func (e *Engine) Abandon(ctx context.Context, host string) error {
	recs, err := e.operations.List(ctx)
	if err != nil {
		return err
	}
	var problems []error
	for _, rec := range recs {
		problems = append(problems, e.abandon(ctx, rec, host))
	}
	return errors.Join(problems...)
}

func (e *Engine) abandon(ctx context.Context, rec store.Record[record], host string) error {
	for rec.Value.Host == host && !rec.Value.State.Final() {
		r := rec.Value.clone()
		r.State, r.Data, r.Progress, r.Result, r.Trouble = api.OperationFailed, nil, nil, nil, ""
		r.UpdatedAt = time.Now().UTC()
		r.Cause = api.ProblemOf(api.Errorf(api.Unavailable, "%s: host %q was removed from the cluster in the middle of it, at step %q",
			describe(r.Kind, r.Target), host, r.Steps[r.Index].Name))
		ops := []store.Op{e.operations.OpUpdate(store.Record[record]{Key: rec.Key, Value: r, Revision: rec.Revision})}
		for _, lock := range r.Locks {
			ops = append(ops, e.release(lock, rec.Key))
		}
		_, err := e.store.Txn(store.Freeing(ctx), ops...)
		if api.KindOf(err) != api.Conflict {
			return err
		}
		// Its host has just written it, or handed it over.
		if rec, err = e.operations.Get(ctx, rec.Key); err != nil {
			return err
		}
	}
	return nil
}
