package operation

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"polder/api"
	"polder/internal/store"
)

// UndoTimeout is how long one try of one Undo may take.
const UndoTimeout = 2 * time.Minute

// run does the rest of the operation, whichever state it is in; back, when set, is why it is undone.
func (x *execution) run(back error) {
	for {
		if x.operation().State == api.OperationRunning && back == nil {
			if back = x.goForward(); back == nil {
				return
			}
		}
		if errors.Is(back, errAbandoned) || errors.Is(back, errMoved) || x.abandoned() {
			return
		}
		err := x.goBack(back)
		if errors.Is(err, errMoved) && x.here() {
			back = nil
			continue
		}
		if err != nil && !errors.Is(err, errAbandoned) && !errors.Is(err, errMoved) {
			x.log.Error("the operation can not be ended", "error", err)
		}
		return
	}
}

// here says whether the operation is still this host's.
func (x *execution) here() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rec.Value.Host == x.e.host
}

// goForward does the step under way and all after it, up to the end or to where another host goes on. Its error is why it
// has to be undone.
func (x *execution) goForward() error {
	for i := x.index(); ; i++ {
		if err := x.doStep(i); err != nil {
			return err
		}
		last := i == len(x.kind.steps)-1
		data, err := x.steps.state()
		if err != nil {
			return err
		}
		change := newChange(func(r *record) {
			x.finishStep(r, i)
			if last {
				x.finish(r, api.OperationDone)
				return
			}
			r.Index, r.Data = i+1, data
			if on := x.steps.on(i + 1); on != "" && on != r.Host {
				r.Host = on
				return
			}
			now := time.Now().UTC()
			r.Steps[i+1].StartedAt = &now
		})
		if err := x.boundary(i, last, change); err != nil || last || !x.here() {
			return err
		}
	}
}

// boundary writes that step i is done. Before the point of no return a request to cancel, or a store that does not take the
// record, undoes the operation. Once all steps are done only a cancel does: the write is tried until its outcome is known.
func (x *execution) boundary(i int, last bool, c change) error {
	with := []more{func() ([]store.Op, error) { return x.steps.commit(x.base, i) }}
	if last {
		with = append(with, x.releases)
	}
	undoable := i < x.kind.noReturn
	x.crossing = x.crossing || i == x.kind.noReturn-1
	for n := 0; ; n++ {
		err := x.write(undoable, c, with...)
		if errors.Is(err, errMoved) { // by an earlier try of this very write
			return nil
		}
		if err == nil || errors.Is(err, errCancelAsked) || errors.Is(err, errAbandoned) {
			return err
		}
		if undoable && !last && (n == boundaryTries || api.KindOf(err) != api.Unavailable) {
			return err
		}
		x.log.Error("the operation's record can not be written; trying again", "error", err)
		if !x.e.sleep(backoff(n)) {
			return errAbandoned
		}
	}
}

// boundaryTries is how often a step boundary is written to a store that does not answer: for some 5 s, and the time that
// each request takes to fail.
const boundaryTries = 8

// doStep does step i; from the point of no return on until it succeeds.
func (x *execution) doStep(i int) error {
	for n := 0; ; n++ {
		err := x.try(x.forward, i, BeforeDo, AfterDo, x.steps.do)
		if x.abandoned() {
			return errAbandoned
		}
		if err == nil || i < x.kind.noReturn {
			return err
		}
		x.log.Error("a step failed that can not be undone any more; trying again", "step", x.kind.steps[i], "try", n+1, "error", err)
		if err := x.wait(n, fmt.Sprintf("step %q failed %d times, trying again: %v", x.kind.steps[i], n+1, err)); err != nil {
			return err
		}
	}
}

// wait waits before the next try, and once that takes a while says why in the record.
func (x *execution) wait(n int, trouble string) error {
	delay := backoff(n)
	if delay >= time.Second/2 {
		err := x.write(false, newChange(func(r *record) { r.Trouble = trouble }))
		if err != nil && !errors.Is(err, errAbandoned) {
			x.log.Error("the operation's trouble can not be recorded", "error", err)
		}
	}
	if !x.e.sleep(delay) {
		return errAbandoned
	}
	return nil
}

// try calls a Do or Undo, with the faults around it. A panic is an error like others: one bad step must not stop all VEs'
// daemon.
func (x *execution) try(ctx context.Context, i int, before, after Phase, f func(context.Context, int) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			x.log.Error("a step panicked", "step", x.kind.steps[i], "panic", p, "stack", string(debug.Stack()))
			err = api.Errorf(api.Internal, "step %q panicked: %v", x.kind.steps[i], p)
		}
	}()
	if err := x.fault(i, before); err != nil {
		return err
	}
	if err := f(ctx, i); err != nil {
		return err
	}
	return x.fault(i, after)
}

// goBack undoes the step under way and all before it, and ends the operation. why is nil when that was recorded before.
func (x *execution) goBack(why error) error {
	if why != nil {
		cause := x.cause(why)
		x.log.Info("undoing the operation", "step", x.kind.steps[x.index()], "error", cause.Detail)
		if err := x.turnBack(cause); err != nil {
			return err
		}
	}
	for i := x.index(); i >= 0; i-- {
		if x.abandoned() {
			return errAbandoned
		}
		if err := x.undoStep(i); err != nil {
			return err
		}
		if i > 0 {
			if err := x.note(func(r *record) { r.Steps[i].Undone, r.Index, r.Trouble, r.Progress = true, i-1, "", nil }); err != nil {
				return err
			}
		}
	}
	return x.endUndone()
}

// turnBack writes that the operation is being undone. When the write of its point of no return was tried, it may have happened
// although its answer was lost: then nothing may be undone before the store has said which it is.
func (x *execution) turnBack(cause *api.Problem) error {
	apply := func(r *record) { r.State, r.Cause, r.Progress, r.Trouble = api.OperationUndoing, cause, nil, "" }
	if !x.crossing {
		return x.note(apply)
	}
	c := newChange(apply)
	for n := 0; ; n++ {
		err := x.write(false, c)
		if err == nil || errors.Is(err, errAbandoned) || errors.Is(err, errMoved) {
			return err
		}
		x.log.Error("whether the operation has passed its point of no return is not known; asking again", "error", err)
		if !x.e.sleep(min(backoff(n), time.Second)) {
			return errAbandoned
		}
	}
}

// endUndone writes that all is undone, until the store takes it.
func (x *execution) endUndone() error {
	c := newChange(func(r *record) {
		r.Steps[0].Undone = true
		state := api.OperationFailed
		if r.Cause != nil && r.Cause.Kind == api.Cancelled {
			state = api.OperationCancelled
		}
		x.finish(r, state)
	})
	for n := 0; ; n++ {
		err := x.write(false, c, x.releases)
		if err == nil || errors.Is(err, errAbandoned) {
			return err
		}
		x.log.Error("the operation's record can not be written; trying again", "error", err)
		if !x.e.sleep(backoff(n)) {
			return errAbandoned
		}
	}
}

// note writes how far the undoing is. When the store does not take it (a full disk, say) the undoing goes on, since it may
// be what helps: after a crash it would be repeated. The change is kept for the next write.
func (x *execution) note(apply func(*record)) error {
	err := x.write(false, newChange(apply))
	if err == nil || errors.Is(err, errAbandoned) || errors.Is(err, errMoved) {
		return err
	}
	x.log.Error("the operation's record can not be written", "error", err)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rec.Value = x.rec.Value.clone()
	apply(&x.rec.Value)
	return nil
}

func (x *execution) undoStep(i int) error {
	for n := 0; ; n++ {
		err := x.undoOnce(i)
		if x.abandoned() {
			return errAbandoned
		}
		if err == nil {
			return nil
		}
		x.log.Error("a step can not be undone; trying again", "step", x.kind.steps[i], "try", n+1, "error", err)
		if err := x.wait(n, fmt.Sprintf("undoing step %q failed %d times, trying again: %v", x.kind.steps[i], n+1, err)); err != nil {
			return err
		}
	}
}

func (x *execution) undoOnce(i int) error {
	ctx, cancel := context.WithTimeout(x.base, UndoTimeout)
	defer cancel()
	return x.try(ctx, i, BeforeUndo, AfterUndo, x.steps.undo)
}

// cause is what the operation's record says about why it is undone.
func (x *execution) cause(why error) *api.Problem {
	what := describe(x.kind.name, x.target)
	if errors.Is(why, errCancelAsked) || errors.Is(context.Cause(x.forward), errCancelAsked) {
		return api.ProblemOf(api.Errorf(api.Cancelled, "%s: cancelled at step %q", what, x.kind.steps[x.index()]))
	}
	kind := api.KindOf(why)
	if kind == api.Cancelled { // nobody asked: some part took its own end for the operation's
		kind = api.Internal
	}
	return api.ProblemOf(api.Errorf(kind, "%s: %w", what, why))
}

func (x *execution) finishStep(r *record, i int) {
	now := time.Now().UTC()
	r.Steps[i].FinishedAt = &now
	r.Progress, r.Trouble = nil, ""
	x.resultMu.Lock()
	r.Result = x.result
	x.resultMu.Unlock()
	x.progress.reset()
}

func (x *execution) finish(r *record, state api.OperationState) {
	r.State, r.Data, r.Progress, r.Trouble = state, nil, nil, ""
	if state != api.OperationDone {
		r.Result = nil
	}
	x.progress.reset()
}

func (x *execution) releases() (ops []store.Op, _ error) {
	for _, lock := range x.locks {
		ops = append(ops, x.e.release(lock, x.id))
	}
	return ops, nil
}
