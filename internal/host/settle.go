package host

import (
	"context"
	"fmt"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/operation"
)

// A VE that keeps crashing is started again with growing pauses, and given up after restartLimit starts within restartWindow.
const (
	restartLimit  = 5
	restartWindow = 10 * time.Minute
	restartPause  = time.Second // before the second start; doubles each time
)

// watch waits for the end of a VE's process and settles it. It ends with the process or with the host. A process that is
// watched already is not watched twice.
func (h *Host) watch(name string, p model.Process) {
	if _, already := h.watched.LoadOrStore(p.PID, name); already {
		return
	}
	h.wg.Go(func() {
		defer h.watched.Delete(p.PID)
		select {
		case exit, ok := <-p.Exited:
			if ok {
				h.settle(name, exit)
			}
		case <-h.ctx.Done():
		}
	})
}

// settle handles a VE that has ended, unless an operation is stopping it: then that is the owner and needs no help. An
// operation of another kind (a pause, say) is waited for first.
func (h *Host) settle(name string, exit model.Exit) {
	for h.ctx.Err() == nil {
		v, err := h.get(h.ctx, name)
		if err != nil || v.Host != h.cfg.Name || v.State == api.Stopped || v.State == api.Stopping || v.State == api.Failed {
			return
		}
		op, err := operation.Start(h.ctx, h.engine, "settle", operation.Request{Target: "ve/" + name}, change{ID: v.ID, Name: name, Exit: exit})
		switch api.KindOf(err) {
		case "":
			if _, err := h.engine.Wait(h.ctx, op.ID, nil); err == nil {
				h.restart(name, exit)
			}
			return
		case api.Conflict:
			h.waitFor(name)
		default:
			h.log.Error("a ve ended and could not be settled", "ve", name, "exit", exit.Reason, "error", err)
			return
		}
	}
}

// waitFor blocks until no operation is under way on a VE.
func (h *Host) waitFor(name string) {
	if id, err := h.engine.Holder(h.ctx, "ve/"+name); err == nil && id != "" {
		_, _ = h.engine.Wait(h.ctx, id, nil) // whatever comes of it
	}
}

// doTidy removes what the ended VE left on the host and writes down why it ended. A VE that runs after all (another start
// came first) is left alone.
func (h *Host) doTidy(ctx context.Context, r *operation.Run[change]) error {
	v, ok, err := h.subject(ctx, r)
	if err != nil || !ok || v.Host != h.cfg.Name {
		return err
	}
	_, impl, spec, err := h.running(ctx, r)
	if err != nil {
		return err
	}
	if _, _, alive, err := impl.Adopt(ctx, spec); err != nil || alive {
		return err
	}
	if err := impl.Stop(ctx, spec, 0); err != nil {
		return err
	}
	return h.set(ctx, v.Name, func(v *VE) {
		v.State, v.PID, v.StartedAt, v.Reason = api.Stopped, 0, nil, r.State.Exit.Reason
		if r.State.Exit.Crashed {
			v.State = api.Failed
		}
		if restartWanted(v.Restart, r.State.Exit) {
			v.Ended = &r.State.Exit
		}
	})
}

// restartWanted says whether a VE that has ended is to be started again. After the host went down, those that ran run again,
// unless they are never to be restarted.
func restartWanted(policy api.RestartPolicy, exit model.Exit) bool {
	switch {
	case exit.Reboot, policy == api.RestartAlways:
		return true
	case policy == api.RestartOnFailure:
		return exit.Crashed || exit.HostDown
	}
	return false
}

// restartDue finds a VE of this host that has ended, and whose restart policy wants it started again.
func (h *Host) restartDue(name string) (v VE, due bool) {
	v, err := h.get(h.ctx, name)
	return v, err == nil && v.Host == h.cfg.Name && v.Ended != nil && (v.State == api.Stopped || v.State == api.Failed)
}

// restart starts a settled VE again where its policy says so, once no other operation acts on it. One that is moved away before is
// started by its new host.
func (h *Host) restart(name string, exit model.Exit) {
	v, due := h.restartDue(name)
	if !due {
		return
	}
	pause, ok := v.countRestart(exit, time.Now().UTC())
	if !ok {
		h.note(name, func(rec *VE) {
			rec.State, rec.Ended = api.Failed, nil
			rec.Reason = fmt.Sprintf("%s; given up after %d restarts in %v", exit.Reason, restartLimit, restartWindow)
		})
		return
	}
	h.note(name, func(rec *VE) { rec.Restarts, rec.RestartsSince = v.Restarts, v.RestartsSince })
	select {
	case <-time.After(pause):
	case <-h.ctx.Done():
		return
	}
	op, err := h.begin(h.ctx, "start", model.Start, change{Name: name, ByPolicy: true})
	for api.KindOf(err) == api.Conflict {
		h.waitFor(name)
		if _, due := h.restartDue(name); !due {
			return
		}
		op, err = h.begin(h.ctx, "start", model.Start, change{Name: name, ByPolicy: true})
	}
	if err == nil {
		op, err = h.engine.Wait(h.ctx, op.ID, nil)
	}
	if err == nil {
		err = op.Error.Err()
	}
	switch kind := api.KindOf(err); {
	case h.ctx.Err() != nil, kind == api.NotFound, kind == api.Conflict, kind == api.Precondition: // somebody else acts on it
	case err != nil:
		h.log.Error("a ve could not be started again", "ve", name, "error", err)
		h.note(name, func(v *VE) {
			v.State, v.Reason, v.Ended = api.Failed, fmt.Sprintf("start after %q: %v", exit.Reason, err), nil
		})
	default:
		h.log.Warn("a ve ended and was started again", "ve", name, "exit", exit.Reason, "restarts", v.Restarts)
		h.note(name, func(v *VE) { v.Reason = "started again after: " + exit.Reason })
	}
}

// countRestart counts a restart and says how long to wait before it; ok is false when it has been tried often enough. A
// reboot, of the VE or of the host, is no failure and is not counted.
func (v *VE) countRestart(exit model.Exit, now time.Time) (pause time.Duration, ok bool) {
	if exit.Reboot || exit.HostDown {
		return 0, true
	}
	if v.RestartsSince == nil || now.Sub(*v.RestartsSince) > restartWindow {
		v.Restarts, v.RestartsSince = 0, &now
	}
	if v.Restarts >= restartLimit {
		return 0, false
	}
	v.Restarts++
	if v.Restarts > 1 {
		pause = restartPause << (v.Restarts - 2)
	}
	return pause, true
}

// note changes a record where a failure can only be logged.
func (h *Host) note(name string, change func(*VE)) {
	if err := h.set(h.ctx, name, change); err != nil && h.ctx.Err() == nil {
		h.log.Error("a ve's record could not be changed", "ve", name, "error", err)
	}
}
