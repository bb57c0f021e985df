package host

import (
	"context"
	"fmt"
	"time"

	"polder/api"
	"polder/internal/image"
	"polder/internal/migrate"
	"polder/internal/model"
	"polder/internal/storage"
)

// loadTime is how long a VE's load is measured for before a move.
const loadTime = 500 * time.Millisecond

// PlanMove says what a move would do. Nothing is changed. It is worked out at the VE's host.
func (h *Host) PlanMove(ctx context.Context, name string, req api.MoveRequest) (api.MovePlan, error) {
	v, err := h.checkMove(ctx, name, &req)
	if err != nil {
		return api.MovePlan{}, fmt.Errorf("move ve %q: %w", name, err)
	}
	if v.Host != h.cfg.Name {
		var plan api.MovePlan
		return plan, h.tell(ctx, v.Host, "/peer/v1/plans/"+name, req, &plan)
	}
	plan, _, err := h.planMove(ctx, v, req)
	return plan.View(v.Name, v.Host, req.To), err
}

// planForPeer is PlanMove for another host.
func (h *Host) planForPeer(ctx context.Context, name string, req api.MoveRequest) (api.MovePlan, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return api.MovePlan{}, err
	}
	if v.Host != h.cfg.Name {
		return api.MovePlan{}, api.Errorf(api.Conflict, "ve %q has just moved to host %q: ask again", name, v.Host)
	}
	plan, _, err := h.planMove(ctx, v, req)
	return plan.View(v.Name, v.Host, req.To), err
}

// doPlanMove chooses how the VE is moved.
func (h *Host) doPlanMove(ctx context.Context, r *moveRun) error {
	r.State.Began = time.Now().UTC()
	v, err := h.moving(ctx, r)
	if err != nil {
		return err
	}
	if v.Host != h.cfg.Name {
		return api.Errorf(api.Conflict, "ve %q has moved to host %q meanwhile", v.Name, v.Host)
	}
	plan, load, err := h.planMove(ctx, v, r.State.Want)
	if err == nil {
		err = plan.Err(v.Name)
	}
	if err != nil {
		return err
	}
	r.State.VE, r.State.Plan, r.State.Transfer = v, plan.View(v.Name, v.Host, r.State.Want.To), transferOf(v)
	r.State.Mirrored = load.Mirrored
	return nil
}

func (h *Host) planMove(ctx context.Context, v VE, req api.MoveRequest) (migrate.Plan, model.Load, error) {
	facts, err := h.moveFacts(ctx, v, req)
	if err != nil {
		return migrate.Plan{}, facts.Load, err
	}
	return migrate.Choose(facts), facts.Load, nil
}

// moveFacts measures what the choice depends on: the VE's load, the link, what the target says.
func (h *Host) moveFacts(ctx context.Context, v VE, req api.MoveRequest) (migrate.Facts, error) {
	facts := migrate.Facts{
		Model: v.Model, State: v.State, Mode: req.Mode, Limit: req.BandwidthBytes,
		MaxDowntime: time.Duration(req.MaxDowntimeMS) * time.Millisecond, VolumeLast: smallRound, Costs: migrate.CostsOf(v.Model),
	}
	var err error
	if facts.Volume, err = h.pool.Usage(ctx, v.ID); err != nil {
		return facts, err
	}
	if facts.Link, err = migrate.Measure(ctx, h.dialer(req.To)); err != nil {
		return facts, err
	}
	running := v.State == api.Running || v.State == api.Paused
	if running && req.Mode != api.Cold {
		if err := h.loadFacts(ctx, v, &facts); err != nil {
			return facts, err
		}
	}
	ask, err := h.arrivalOf(ctx, v, running && req.Mode != api.Cold)
	if err != nil {
		return facts, err
	}
	ask.Memory, ask.Bytes = facts.Load.Room, facts.Volume
	var says checkAnswer
	if err := h.tell(ctx, req.To, movePath("0", "check"), ask, &says); err != nil {
		return facts, err
	}
	facts.Blockers = append(facts.Blockers, says.Blockers...)
	facts.NoPostCopy = says.NoPostCopy
	return facts, nil
}

// loadFacts asks the model what a running VE is like. A model that can't move memory only moves cold.
func (h *Host) loadFacts(ctx context.Context, v VE, facts *migrate.Facts) error {
	mover, err := h.mover(v.Model)
	if err != nil {
		facts.Blockers = append(facts.Blockers, api.Blocker{Reason: err.Error(), Except: api.Cold})
		return nil
	}
	spec, err := h.spec(ctx, v)
	if err != nil {
		return err
	}
	blockers, err := mover.Blockers(ctx, spec)
	if err != nil {
		return err
	}
	facts.Blockers = append(facts.Blockers, blockers...)
	facts.Load, err = mover.Load(ctx, spec, loadTime)
	if facts.Load.Mirrored {
		facts.VolumeLast = 0
	}
	return err
}

// arrivalOf is what the target is told of a VE that may come; with its memory, or without.
func (h *Host) arrivalOf(ctx context.Context, v VE, memory bool) (arrivalRequest, error) {
	req := arrivalRequest{VE: v, Transfer: transferOf(v), Format: h.pool.TransferFormat()}
	var err error
	if req.Origin, err = h.pool.BaseOrigin(ctx, baseOf(v), req.Transfer.Kind); err != nil {
		return req, err
	}
	if !memory {
		return req, nil
	}
	mover, err := h.mover(v.Model)
	if err != nil {
		return req, nil // it moves cold, if at all
	}
	spec, err := h.spec(ctx, v)
	if err == nil {
		req.Needs, err = mover.Needs(ctx, spec)
	}
	return req, err
}

// transferOf is a VE's volume on its way; whether it can be sent as what differs from its base only the target can say.
func transferOf(v VE) storage.Transfer {
	t := storage.Transfer{ID: v.ID, Kind: storage.Tree, Size: v.Disk}
	if v.Model == api.VM {
		t.Kind = storage.Disk
	}
	return t
}

// baseOf is the base of the image that a VE was made of.
func baseOf(v VE) string {
	if v.Model == api.VM {
		return image.DiskBase(api.Image{Digest: v.ImageDigest})
	}
	return image.TreeBase(api.Image{Digest: v.ImageDigest})
}
