package host

import (
	"context"
	"errors"
	"time"

	"polder/api"
	"polder/internal/model"
)

// enterPatience is how long a VE that has come with its memory may take to go on. One that can't is as good as crashed: it is
// ended, for its restart policy to see to, rather than left standing still for ever.
const enterPatience = time.Minute

// doEnter makes the VE go on at the target. It is past the point of no return: it is tried until it succeeds, or the VE is
// found not to be able to.
func (h *Host) doEnter(ctx context.Context, r *moveRun) error {
	v, err := h.moving(ctx, r)
	if err != nil {
		return err
	}
	if r.State.Entered.IsZero() { // this host has not tried yet, in this life
		r.State.Entered = time.Now()
	}
	switch {
	case r.State.keepsState():
		if err = h.goOn(ctx, r, v); hopeless(r, v, err) {
			err = h.endArrived(ctx, v, err)
		}
	case r.State.ran():
		if err = h.startVE(ctx, v); err != nil && ctx.Err() == nil {
			err = h.endArrived(ctx, v, err)
		}
	default:
		err = h.set(ctx, v.Name, func(v *VE) { v.State = r.State.VE.State })
		if v.Ended != nil { // and was not started again yet
			h.wg.Go(func() { h.adoptLater(v.Name) })
		}
	}
	if err == nil && r.State.follows() {
		err = h.set(ctx, v.Name, func(v *VE) { v.MemoryAt = "" })
	}
	if err != nil {
		return err
	}
	h.arrivals.drop(func(op string, _ *arrival) bool { return op == r.ID })
	r.Result(h.moved(ctx, r))
	return nil
}

// hopeless says whether a VE can't be expected to go on any more. One whose memory follows may have gone on already, in this try or, as
// its record v shows, in an earlier one: it is waited for until its source is given up.
func hopeless(r *moveRun, v VE, err error) bool {
	if r.State.follows() && (!r.State.wentOn.IsZero() || v.PID != 0) {
		return errors.Is(err, errGone)
	}
	return err != nil && time.Since(r.State.Entered) > enterPatience || errors.Is(err, errGone)
}

// goOn lets a received VE go on, with its memory. One that has ended meanwhile, with the host perhaps, is settled.
func (h *Host) goOn(ctx context.Context, r *moveRun, v VE) error {
	mover, err := h.mover(v.Model)
	if err != nil {
		return err
	}
	impl, spec, err := h.placed(ctx, v)
	if err != nil {
		return err
	}
	if _, _, alive, err := impl.Adopt(ctx, spec); err != nil {
		return err
	} else if !alive {
		h.log.Warn("a ve ended before it could go on here", "ve", v.Name)
		if err := h.set(ctx, v.Name, func(v *VE) { v.State, v.Boot = api.Running, h.boot }); err != nil {
			return err
		}
		h.wg.Go(func() { h.adoptLater(v.Name) })
		return nil
	}
	if !r.State.follows() {
		p, err := mover.Enter(ctx, spec)
		if err == nil {
			err = h.hasGoneOn(ctx, r, v, p)
		}
		return err
	}
	f, err := follower(mover, v)
	if err != nil {
		return err
	}
	return h.whileSourceLives(ctx, r, func(ctx context.Context) error {
		p, err := h.goAhead(ctx, r, spec, f)
		if err == nil {
			err = h.hasGoneOn(ctx, r, v, p)
		}
		if err == nil {
			err = h.gather(ctx, r, spec, f)
		}
		return err
	})
}

// hasGoneOn writes down that a VE runs here, and watches it.
func (h *Host) hasGoneOn(ctx context.Context, r *moveRun, v VE, p model.Process) error {
	err := h.set(ctx, v.Name, func(v *VE) {
		v.State, v.Reason, v.PID, v.Accelerator, v.Boot, v.Ended = r.State.VE.State, "", p.PID, p.Accelerator, h.boot, nil
	})
	if err == nil {
		r.State.wentOn = time.Now()
		h.watch(v.Name, p)
	}
	return err
}

// endArrived ends a VE that has come and can't run here, and says why.
func (h *Host) endArrived(ctx context.Context, v VE, why error) error {
	h.log.Error("a ve that has come can't run here", "ve", v.Name, "error", why)
	impl, spec, err := h.placed(ctx, v)
	if err != nil {
		return err
	}
	if err := impl.Stop(ctx, spec, 0); err != nil {
		return err
	}
	return h.set(ctx, v.Name, func(v *VE) {
		v.State, v.PID, v.StartedAt, v.Reason = api.Failed, 0, nil, "after its move: "+why.Error()
	})
}

// moved is what the operation answers.
func (h *Host) moved(ctx context.Context, r *moveRun) api.MoveResult {
	still, _ := r.State.spent(time.Now())
	seen := h.observed(ctx, r) // waits for the VE's answer
	_, total := r.State.spent(time.Now())
	reason := r.State.Plan.Reason
	if r.State.Way != "" {
		reason += "; " + r.State.Way
	}
	return api.MoveResult{
		Mode: r.State.Plan.Mode, From: r.State.VE.Host, To: r.State.Want.To,
		OutageMS: seen, TotalMS: total.Milliseconds(), TransferredBytes: r.State.Bytes,
		StateKept: r.State.keepsState(), Reason: reason, StillMS: still.Milliseconds(), Observer: r.State.Observer,
	}
}
