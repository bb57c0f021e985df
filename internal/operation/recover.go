package operation

import (
	"context"
	"slices"

	"polder/api"
	"polder/internal/store"
)

// Recover takes over what was in flight on this host when the daemon stopped: each operation is resumed or undone, in the
// background. Call it once, after everything is registered. An operation that this version does not know is left alone.
func (e *Engine) Recover(ctx context.Context) error {
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

func (e *Engine) adopt(rec store.Record[record]) {
	log := e.log.With("op", rec.Key, "kind", rec.Value.Kind, "target", rec.Value.Target)
	e.mu.Lock()
	k, running := e.kinds[rec.Value.Kind], e.running[rec.Key] != nil
	e.mu.Unlock()
	if running {
		return
	}
	if k == nil || !k.matches(rec.Value) {
		log.Error("an operation is in flight that this version of polder does not know; its locks stay taken until the version that began it ends it")
		return
	}
	rec.Value = rec.Value.clone()
	x, err := e.newExecution(k, rec)
	if err != nil {
		log.Error("an operation can not be taken up again", "error", err)
		return
	}
	log.Info("taking up an operation again", "state", rec.Value.State, "step", k.steps[rec.Value.Index])
	x.resume()
}

// matches says whether the operation has the steps that this version would give it.
func (k *kind) matches(r record) bool {
	return slices.EqualFunc(k.steps, r.Steps, func(name string, s api.OperationStep) bool { return name == s.Name }) &&
		r.Index >= 0 && r.Index < len(r.Steps)
}

// resume begins the execution of an operation found in flight, forward or back.
func (x *execution) resume() {
	r := &x.rec.Value
	if r.State == api.OperationRunning && r.Index < x.kind.noReturn {
		switch {
		case r.CancelAsked:
			x.begin(errCancelAsked)
			return
		case x.kind.after == Undo:
			x.begin(api.Errorf(api.Unavailable, "the daemon stopped at step %q", x.kind.steps[r.Index]))
			return
		}
	}
	x.begin(nil)
}
