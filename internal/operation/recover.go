package operation

import (
	"context"
	"errors"
	"slices"
	"time"

	"polder/api"
	"polder/internal/store"
)

// Recover takes over what was in flight on this host when the daemon stopped: each operation is resumed or undone, in the
// background. Call it once, after everything is registered. An operation that this version does not know is left alone.
func (e *Engine) Recover(ctx context.Context) error {
	e.mu.Lock()
	e.taking = true
	e.mu.Unlock()
	return e.takeUp(ctx)
}

// takeUp takes over all operations of this host that are in flight and do not run here yet.
func (e *Engine) takeUp(ctx context.Context) error {
	recs, err := e.operations.List(ctx)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		if rec.Value.Host == e.host && !rec.Value.State.Final() {
			e.adopt(rec)
		}
	}
	return nil
}

// takeUpOne does so for one, in the background, once the store says how it stands: what was seen of it may be old, and the store
// may not answer just now.
func (e *Engine) takeUpOne(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return
	}
	e.wg.Go(func() {
		for n := 0; ; n++ {
			rec, err := e.operations.Get(e.ctx, id)
			switch {
			case err == nil && rec.Value.Host == e.host && !rec.Value.State.Final():
				e.adopt(rec)
				return
			case err == nil || api.KindOf(err) == api.NotFound || !e.sleep(backoff(n)):
				return
			}
		}
	})
}

func (e *Engine) adopt(rec store.Record[record]) {
	log := e.log.With("op", rec.Key, "kind", rec.Value.Kind, "target", rec.Value.Target)
	e.mu.Lock()
	k := e.kinds[rec.Value.Kind]
	e.mu.Unlock()
	if k == nil || !k.matches(rec.Value) {
		log.Error("an operation is in flight that this version of polder does not know; its locks stay taken until the version that began it ends it")
		return
	}
	rec.Value = rec.Value.clone()
	x, err := e.newExecution(k, rec)
	if errors.Is(err, errRuns) {
		return
	}
	if err != nil {
		log.Error("an operation can not be taken up again", "error", err)
		return
	}
	x.crossing = rec.Value.Index == k.noReturn-1 && rec.Value.State == api.OperationRunning
	log.Info("taking up an operation", "state", rec.Value.State, "step", k.steps[rec.Value.Index])
	x.begin(x.resume)
}

// matches says whether the operation has the steps that this version would give it.
func (k *kind) matches(r record) bool {
	return slices.EqualFunc(k.steps, r.Steps, func(name string, s api.OperationStep) bool { return name == s.Name }) &&
		r.Index >= 0 && r.Index < len(r.Steps)
}

// resume does the rest of an operation found in flight, forward or back.
func (x *execution) resume() {
	r := x.rec.Value
	switch {
	case r.State != api.OperationRunning || r.Index >= x.kind.noReturn:
		x.run(nil)
	case r.CancelAsked:
		x.run(errCancelAsked)
	case r.Steps[r.Index].StartedAt == nil:
		x.run(x.first())
	case x.kind.after == Undo:
		x.run(api.Errorf(api.Unavailable, "the daemon stopped at step %q", x.kind.steps[r.Index]))
	default:
		x.run(nil)
	}
}

// first writes that this host begins an operation that another one has started for it: a crash from now on is one.
func (x *execution) first() error {
	c := newChange(func(r *record) { now := time.Now().UTC(); r.Steps[r.Index].StartedAt = &now })
	for n := 0; ; n++ {
		err := x.write(true, c)
		if err == nil || errors.Is(err, errCancelAsked) || errors.Is(err, errAbandoned) || errors.Is(err, errMoved) {
			return err
		}
		x.log.Error("the operation's record can not be written; trying again", "error", err)
		if !x.e.sleep(backoff(n)) {
			return errAbandoned
		}
	}
}
