package host

import (
	"context"
	"fmt"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/operation"
)

// defaultGrace is how long an orderly halt may take before the VE is killed.
const defaultGrace = 30 * time.Second

// change is the state of the operations that take one existing VE from one state to another.
type change struct {
	ID    string        `json:"id"` // of the VE meant: another one of the same name is not touched
	Name  string        `json:"name"`
	Grace time.Duration `json:"grace,omitempty"`
	Exit  model.Exit    `json:"exit,omitzero"` // of settle
	// ByPolicy tells a start by the restart policy from one by hand, which begins the count anew.
	ByPolicy bool `json:"by_policy,omitempty"`
}

type changeStep = operation.Step[change]

// registerOperations tells the engine what this host can do.
func (h *Host) registerOperations() {
	operation.Register(h.engine, operation.Definition[launch]{Kind: "launch", Steps: h.launchSteps()})
	operation.Register(h.engine, h.moveDefinition())
	operation.Register(h.engine, h.cloneDefinition())
	h.registerSnapshots()
	h.registerTemplates()
	start := changeStep{Name: "start", Do: h.doStart, Undo: h.undoStart}
	stop := changeStep{Name: "stop", Do: h.doStop, Undo: h.restate}
	for _, d := range []operation.Definition[change]{
		{Kind: "start", Steps: []changeStep{start}},
		{Kind: "stop", Steps: []changeStep{stop, {Name: "discard", Do: h.doDiscard}}},
		{Kind: "restart", Steps: []changeStep{stop, start}},
		{Kind: "pause", Steps: []changeStep{{Name: "pause", Do: h.doPause, Undo: h.restate}}},
		{Kind: "resume", Steps: []changeStep{{Name: "resume", Do: h.doResume, Undo: h.restate}}},
		{Kind: "settle", Steps: []changeStep{{Name: "tidy", Do: h.doTidy}, {Name: "discard", Do: h.doDiscard}}},
		{Kind: "delete", Steps: h.deleteSteps(), PointOfNoReturn: "stop"}, // what was killed can't be taken back
	} {
		operation.Register(h.engine, d)
	}
}

// begin starts an operation on a VE that is in a state which allows the event.
func (h *Host) begin(ctx context.Context, kind string, event model.Event, c change) (api.Operation, error) {
	v, err := h.get(ctx, c.Name)
	if err != nil {
		return api.Operation{}, err
	}
	if event != "" {
		if _, err := model.Next(v.State, event); err != nil {
			if busy := h.busy(ctx, c.Name); busy != nil {
				return api.Operation{}, busy
			}
			return api.Operation{}, fmt.Errorf("%s ve %q: %w", kind, c.Name, err)
		}
	}
	if _, err := h.cluster.Reachable(ctx, v.Host); err != nil {
		return api.Operation{}, fmt.Errorf("%s ve %q: %w", kind, c.Name, err)
	}
	c.ID = v.ID
	return operation.Start(ctx, h.engine, kind, operation.Request{Target: "ve/" + c.Name, Host: v.Host, Frees: kind == "delete"}, c)
}

// Start starts a stopped or failed VE.
func (h *Host) Start(ctx context.Context, name string) (api.Operation, error) {
	return h.begin(ctx, "start", model.Start, change{Name: name})
}

// Stop halts a VE in order, or kills it.
func (h *Host) Stop(ctx context.Context, name string, req api.StopRequest) (api.Operation, error) {
	return h.begin(ctx, "stop", model.Stop, change{Name: name, Grace: grace(req)})
}

// Restart halts a VE and starts it again.
func (h *Host) Restart(ctx context.Context, name string, req api.StopRequest) (api.Operation, error) {
	return h.begin(ctx, "restart", model.Stop, change{Name: name, Grace: grace(req)})
}

// Pause freezes a running VE; its memory stays.
func (h *Host) Pause(ctx context.Context, name string) (api.Operation, error) {
	return h.begin(ctx, "pause", model.Pause, change{Name: name})
}

// Resume lets a paused VE go on.
func (h *Host) Resume(ctx context.Context, name string) (api.Operation, error) {
	return h.begin(ctx, "resume", model.Resume, change{Name: name})
}

// Delete kills a VE when it runs, and removes it with its volume.
func (h *Host) Delete(ctx context.Context, name string) (api.Operation, error) {
	return h.begin(ctx, "delete", "", change{Name: name})
}

func grace(req api.StopRequest) time.Duration {
	switch {
	case req.Force:
		return 0
	case req.TimeoutSeconds > 0:
		return time.Duration(req.TimeoutSeconds) * time.Second
	}
	return defaultGrace
}

// subject finds the VE that an operation is about. ok is false when it has been deleted, or replaced, meanwhile.
func (h *Host) subject(ctx context.Context, r *operation.Run[change]) (v VE, ok bool, err error) {
	v, err = h.get(ctx, r.State.Name)
	if api.KindOf(err) == api.NotFound || err == nil && v.ID != r.State.ID {
		return VE{}, false, nil
	}
	return v, err == nil, err
}

// running gives what a model's method needs for the subject of an operation.
func (h *Host) running(ctx context.Context, r *operation.Run[change]) (VE, model.Model, model.Spec, error) {
	v, err := h.get(ctx, r.State.Name)
	if err != nil {
		return VE{}, nil, model.Spec{}, err
	}
	impl, spec, err := h.placed(ctx, v)
	return v, impl, spec, err
}

func (h *Host) doStart(ctx context.Context, r *operation.Run[change]) error {
	v, err := h.get(ctx, r.State.Name)
	if err != nil {
		return err
	}
	err = h.set(ctx, v.Name, func(v *VE) {
		v.State = api.Starting
		if !r.State.ByPolicy {
			v.Restarts, v.RestartsSince = 0, nil
		}
	})
	if err != nil {
		return err
	}
	if err := h.startVE(ctx, v); err != nil {
		return err
	}
	return h.answer(ctx, r)
}

// undoStart stops what a failed or cancelled start left, and keeps the reason.
func (h *Host) undoStart(ctx context.Context, r *operation.Run[change]) error {
	v, impl, spec, err := h.running(ctx, r)
	if err != nil {
		return err
	}
	if err := impl.Stop(ctx, spec, 0); err != nil {
		return err
	}
	return h.set(ctx, v.Name, func(v *VE) { v.State, v.PID, v.StartedAt = api.Stopped, 0, nil })
}

func (h *Host) doStop(ctx context.Context, r *operation.Run[change]) error {
	v, impl, spec, err := h.running(ctx, r)
	if err != nil {
		return err
	}
	if err := h.set(ctx, v.Name, func(v *VE) { v.State = api.Stopping }); err != nil {
		return err
	}
	if v.State == api.Paused {
		if err := impl.Resume(ctx, spec); err != nil {
			return err
		}
	}
	if err := impl.Stop(ctx, spec, r.State.Grace); err != nil {
		return err
	}
	err = h.set(ctx, v.Name, func(v *VE) {
		v.State, v.Reason, v.PID, v.StartedAt, v.Restarts, v.RestartsSince = api.Stopped, "", 0, nil, 0, nil
	})
	if err != nil {
		return err
	}
	return h.answer(ctx, r)
}

// restate is the undo of what can't be taken back, such as a halt: it makes the record true again. A VE that was not
// stopped in time goes on running; one that is gone is tidied up after.
func (h *Host) restate(ctx context.Context, r *operation.Run[change]) error {
	v, ok, err := h.subject(ctx, r)
	if err != nil || !ok {
		return err
	}
	_, impl, spec, err := h.running(ctx, r)
	if err != nil {
		return err
	}
	p, paused, alive, err := impl.Adopt(ctx, spec)
	switch {
	case err != nil:
		return err
	case alive && paused:
		return h.set(ctx, v.Name, func(v *VE) { v.State, v.PID = api.Paused, p.PID })
	case alive:
		return h.set(ctx, v.Name, func(v *VE) { v.State, v.PID = api.Running, p.PID })
	}
	if err := impl.Stop(ctx, spec, 0); err != nil {
		return err
	}
	return h.set(ctx, v.Name, func(v *VE) { v.State, v.PID, v.StartedAt = api.Stopped, 0, nil })
}

func (h *Host) doPause(ctx context.Context, r *operation.Run[change]) error {
	return h.toState(ctx, r, api.Paused, model.Model.Pause)
}

func (h *Host) doResume(ctx context.Context, r *operation.Run[change]) error {
	return h.toState(ctx, r, api.Running, model.Model.Resume)
}

func (h *Host) toState(ctx context.Context, r *operation.Run[change], to api.State, do func(model.Model, context.Context, model.Spec) error) error {
	v, impl, spec, err := h.running(ctx, r)
	if err != nil {
		return err
	}
	if err := do(impl, ctx, spec); err != nil {
		return err
	}
	if err := h.set(ctx, v.Name, func(v *VE) { v.State = to }); err != nil {
		return err
	}
	return h.answer(ctx, r)
}

// answer gives the VE as the operation's result.
func (h *Host) answer(ctx context.Context, r *operation.Run[change]) error {
	v, err := h.get(ctx, r.State.Name)
	if err != nil {
		return err
	}
	r.Result(v.shown())
	return nil
}

// doDiscard deletes an ephemeral VE that has stopped.
func (h *Host) doDiscard(ctx context.Context, r *operation.Run[change]) error {
	v, ok, err := h.subject(ctx, r)
	if err != nil || !ok || !v.Ephemeral || v.State != api.Stopped && v.State != api.Failed {
		return err
	}
	for _, step := range h.deleteSteps() {
		if err := step.Do(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// deleteSteps take a VE apart, outside in; each can be repeated.
func (h *Host) deleteSteps() []changeStep {
	step := func(name string, do func(context.Context, VE) error) changeStep {
		return changeStep{Name: name, Do: func(ctx context.Context, r *operation.Run[change]) error {
			v, ok, err := h.subject(ctx, r)
			if err != nil || !ok {
				return err
			}
			return do(ctx, v)
		}}
	}
	return []changeStep{
		step("stop", func(ctx context.Context, v VE) error {
			if err := h.set(ctx, v.Name, func(v *VE) { v.State = api.Stopping }); err != nil {
				return err
			}
			return h.tearDown(ctx, v)
		}),
		step("snapshots", h.deleteSnapshots),
		step("volume", func(ctx context.Context, v VE) error { return h.pool.Delete(ctx, v.ID) }),
		step("forget", h.forget),
	}
}

// busy says which operation holds a VE, as the engine would say it; nil when none does.
func (h *Host) busy(ctx context.Context, name string) error {
	id, err := h.engine.Holder(ctx, "ve/"+name)
	if err != nil || id == "" {
		return nil //nolint:nilerr // whoever asks has an error already
	}
	op, err := h.engine.Get(ctx, id)
	if err != nil || op.State.Final() {
		return nil //nolint:nilerr // it has just ended
	}
	return api.Errorf(api.Conflict, "ve %q is busy: operation %s (%s) is running; wait with: polder op watch %s", name, op.ID, op.Kind, op.ID)
}
