package host

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"polder/api"
	"polder/internal/migrate"
	"polder/internal/model"
	"polder/internal/operation"
	"polder/internal/storage"
	"polder/internal/store"
)

// move is the state of the operation "move". It runs at the source until its step "copy" ends; the transaction that says so
// also makes the target the VE's host, and the operation's.
type move struct {
	VE   VE              `json:"ve"` // as it was when the move was planned: on the source; running, paused, stopped or failed
	Want api.MoveRequest `json:"want"`
	Plan api.MovePlan    `json:"plan"`
	// Began is by the source's clock, Entered by the target's: clocks of two hosts may be minutes apart, so that each says how long its
	// part took.
	Began   time.Time `json:"began"`
	Entered time.Time `json:"entered,omitzero"`
	// Transfer is the VE's volume on its way.
	Transfer storage.Transfer `json:"transfer"`
	// Observer is the host that probes the VE; "": none does.
	Observer string `json:"observer,omitempty"`
	// What was seen in "copy".
	Still time.Time     `json:"still,omitzero"`  // since when the VE stands still, by the source's clock
	Stood time.Duration `json:"stood,omitempty"` // from Still to the end of "copy"
	Took  time.Duration `json:"took,omitempty"`  // from Began to the end of "copy"
	Bytes api.Bytes     `json:"bytes,omitempty"`
	Way   string        `json:"way,omitempty"`
	// Mirrored: the model carries the volume: see model.Load.
	Mirrored bool `json:"mirrored,omitempty"`

	// Of use to this daemon only: when the VE has gone on here; when its source was last seen alive.
	wentOn, seen time.Time
}

type (
	moveRun  = operation.Run[move]
	moveStep = operation.Step[move]
)

// keepsState says whether the VE takes its memory along.
func (m *move) keepsState() bool {
	return m.Plan.Mode != api.Cold && m.ran()
}

// follows says whether the VE's memory comes after it.
func (m *move) follows() bool { return m.keepsState() && m.Plan.Way == string(migrate.PostCopy) }

// ran says whether there is something to halt or to keep: the VE was running, or paused.
func (m *move) ran() bool { return m.VE.State == api.Running || m.VE.State == api.Paused }

// clock notes at the source's end of "copy" how long that took, and how much of it the VE stood still.
func (m *move) clock(now time.Time) {
	m.Took = now.Sub(m.Began)
	if !m.Still.IsZero() {
		m.Stood = now.Sub(m.Still)
	}
}

// spent is how long the VE stood still, and how long the move took, when it is over at the target.
func (m *move) spent(now time.Time) (still, total time.Duration) {
	here := now.Sub(m.Entered)
	if !m.Still.IsZero() {
		still = m.Stood + here
	}
	if !m.wentOn.IsZero() { // and was waited for after that
		still = m.Stood + m.wentOn.Sub(m.Entered)
	}
	return still, m.Took + here
}

// movePath is where the target answers for a move.
func movePath(op, verb string) string { return "/peer/v1/moves/" + op + "/" + verb }

// moveDefinition is the operation "move". Its point of no return is the end of "copy": until then the VE stands, or can
// stand up again, at the source; from then on it does so at the target.
func (h *Host) moveDefinition() operation.Definition[move] {
	return operation.Definition[move]{
		Kind: "move",
		Steps: []moveStep{
			{Name: "plan", Do: h.doPlanMove},
			{Name: "prepare", Do: h.doPrepareMove, Undo: h.undoPrepareMove},
			{Name: "copy", Do: h.doCopy, Undo: h.undoCopy, Commit: h.commitMove},
			{Name: "enter", Do: h.doEnter, On: func(m *move) string { return m.Want.To }},
		},
		PointOfNoReturn: "enter",
		// What was copied belongs to a session between two daemons, one of which is gone.
		AfterCrash: operation.Undo,
	}
}

// Move starts moving a VE to another host.
func (h *Host) Move(ctx context.Context, name string, req api.MoveRequest) (api.Operation, error) {
	v, err := h.checkMove(ctx, name, &req)
	if err != nil {
		return api.Operation{}, fmt.Errorf("move ve %q: %w", name, err)
	}
	return operation.Start(ctx, h.engine, "move", operation.Request{Target: "ve/" + name, Host: v.Host}, move{VE: v, Want: req})
}

// checkMove says what can be said of a request on any host.
func (h *Host) checkMove(ctx context.Context, name string, req *api.MoveRequest) (VE, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return v, err
	}
	mode, err := api.ParseMoveMode(string(cmp.Or(req.Mode, api.Auto)))
	if err != nil {
		return v, err
	}
	req.Mode = mode
	switch {
	case req.MaxDowntimeMS < 0 || req.BandwidthBytes < 0:
		return v, api.Errorf(api.Invalid, "downtime %d ms, bandwidth %d bytes: want positive numbers", req.MaxDowntimeMS, req.BandwidthBytes)
	case req.To == "":
		return v, api.Errorf(api.Invalid, "say where to: --to HOST (see: polder host list)")
	case req.To == v.Host:
		return v, api.Errorf(api.Precondition, "it is on host %q already", req.To)
	}
	if busy := h.busy(ctx, name); busy != nil {
		return v, busy
	}
	if snapshots, err := h.snapshotsOf(ctx, v); err != nil {
		return v, err
	} else if len(snapshots) > 0 {
		return v, api.Errorf(api.Precondition, "it has %d snapshots, which can't be taken along: delete them first (polder snapshot list %s)", len(snapshots), name)
	}
	to, err := h.cluster.Reachable(ctx, req.To)
	if err != nil {
		return v, err
	}
	if to.Role == api.RoleWitness {
		return v, api.Errorf(api.Precondition, "host %q is a witness: it runs no VEs", req.To)
	}
	if _, err := h.cluster.Reachable(ctx, v.Host); err != nil {
		return v, err
	}
	return v, nil
}

// doPrepareMove makes room at the target: it checks what only the target can, fetches the image, makes directories. From
// here on both hosts know of the move, and sweep up what is left of it.
func (h *Host) doPrepareMove(ctx context.Context, r *moveRun) error {
	v, err := h.moving(ctx, r)
	if err != nil {
		return err
	}
	if err := h.set(ctx, v.Name, func(v *VE) { v.MovingTo = r.State.Want.To }); err != nil {
		return err
	}
	if err := h.mark(v); err != nil {
		return err
	}
	req, err := h.arrivalOf(ctx, v, r.State.keepsState())
	if err != nil {
		return err
	}
	var answer arrivalAnswer
	if err := h.tell(ctx, r.State.Want.To, movePath(r.ID, "prepare"), req, &answer); err != nil {
		return err
	}
	r.State.Transfer.Base = answer.Base
	return nil
}

// undoPrepareMove tells the target that nothing comes. One that can't be told sees it in the VE's record: see sweep.
func (h *Host) undoPrepareMove(ctx context.Context, r *moveRun) error {
	if err := h.restore(ctx, r, func(v *VE) { v.MovingTo = "" }); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := h.tell(ctx, r.State.Want.To, movePath(r.ID, "abandon"), abandonRequest{VE: r.State.VE.ID}, nil); err != nil {
		r.Log().Info("the target was not told that the move is off; it will see", "host", r.State.Want.To, "error", err)
	}
	return nil
}

// tellTimeout bounds a message to another host that may be lost.
const tellTimeout = 5 * time.Second

// restore is how an undo changes the VE's record. One that is gone, or another VE's by now, is left alone.
func (h *Host) restore(ctx context.Context, r *moveRun, change func(*VE)) error {
	_, err := h.moving(ctx, r)
	if err == nil {
		err = h.set(ctx, r.State.VE.Name, change)
	}
	if api.KindOf(err) == api.NotFound {
		return nil
	}
	return err
}

// moving is the VE that a move is about, with its id checked.
func (h *Host) moving(ctx context.Context, r *moveRun) (VE, error) {
	return h.again(ctx, r.State.VE)
}

// commitMove is the point of no return: with the end of "copy" the VE is the target's. The store may have kept this host
// waiting, so the target is asked once more: one that has died meanwhile can't be made the VE's host.
func (h *Host) commitMove(ctx context.Context, r *moveRun) ([]store.Op, error) {
	if err := h.askHolds(ctx, r); err != nil {
		return nil, err
	}
	rec, err := h.ves.Get(ctx, r.State.VE.Name)
	if err != nil {
		return nil, err
	}
	if rec.Value.ID != r.State.VE.ID {
		return nil, api.Errorf(api.NotFound, "ve %q: it was deleted", r.State.VE.Name)
	}
	v := &rec.Value
	v.Host, v.MovingTo, v.PID, v.UpdatedAt = r.State.Want.To, "", 0, time.Now().UTC()
	if r.State.follows() {
		v.MemoryAt = r.State.VE.Host
	}
	return []store.Op{h.ves.OpUpdate(rec)}, nil
}

// askHolds is an error unless the target still has all of the VE.
func (h *Host) askHolds(ctx context.Context, r *moveRun) error {
	ask, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	err := h.tell(ask, r.State.Want.To, movePath(r.ID, "holds"), holdsRequest{VE: r.State.VE.ID, Memory: r.State.keepsState()}, nil)
	if err == nil {
		return nil
	}
	if ask.Err() != nil && ctx.Err() == nil {
		err = api.Errorf(api.Unavailable, "no answer within %v", tellTimeout)
	}
	return api.Errorf(api.Precondition, "host %q can't take the VE over: %w", r.State.Want.To, err)
}

// mover is the model's part of a move.
func (h *Host) mover(m api.Model) (model.Mover, error) {
	impl, err := h.modelOf(m)
	if err != nil {
		return nil, err
	}
	if mover, ok := impl.(model.Mover); ok {
		return mover, nil
	}
	return nil, api.Errorf(api.Unsupported, "a %s can't be moved with its memory on host %q", m, h.cfg.Name)
}
