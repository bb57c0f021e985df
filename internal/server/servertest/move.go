package servertest

import (
	"context"
	"encoding/json"

	"polder/api"
)

// AddHost puts one more host there.
func (b *Backend) AddHost(h api.Host) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts = append(b.hosts, h)
}

// PlanMove implements server.Backend. A VE with the label "blocked" can't be moved live or warm, for the reason that the label says.
func (b *Backend) PlanMove(ctx context.Context, name string, req api.MoveRequest) (api.MovePlan, error) {
	host, err := b.Host(ctx, req.To)
	if err != nil {
		return api.MovePlan{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	ve, err := b.ve(name)
	switch {
	case err != nil:
		return api.MovePlan{}, err
	case ve.Host == req.To:
		return api.MovePlan{}, api.Errorf(api.Precondition, "move %q: it is on host %q already", name, req.To)
	case host.State != api.HostReady:
		return api.MovePlan{}, api.Errorf(api.Unavailable, "move %q: host %q is %s", name, req.To, host.State)
	}
	return planOf(ve, req), nil
}

func planOf(ve api.VE, req api.MoveRequest) api.MovePlan {
	plan := api.MovePlan{
		VE: ve.Name, From: ve.Host, To: req.To, Mode: req.Mode, Possible: true, Reason: "as asked",
		OutageMS: 2100, TotalMS: 4000, Bytes: ve.MemoryBytes,
	}
	switch {
	case ve.State != api.Running:
		plan.Mode, plan.OutageMS, plan.Reason = api.Cold, 0, "cold: it does not run, so only its volume is sent"
	case req.Mode == "" || req.Mode == api.Auto || req.Mode == api.Live:
		plan.Mode, plan.Way, plan.OutageMS, plan.Reason = api.Live, "pre-copy", 240, "live: pre-copy in 2 rounds, about 240ms outage; warm would take 2.1s"
	}
	if reason := ve.Labels["blocked"]; reason != "" && plan.Mode != api.Cold {
		plan.Possible, plan.Reason, plan.Remedy = false, string(plan.Mode)+" is not possible: "+reason, "--mode cold"
		plan.Blockers = []api.Blocker{{Process: "db", PID: 7, Descriptor: "fd 5", Reason: reason, Remedy: "stop db", Except: api.Cold}}
	}
	return plan
}

// Move implements server.Backend. The label "move" decides how it goes, as images do for a launch: slow, stuck or full.
func (b *Backend) Move(ctx context.Context, name string, req api.MoveRequest) (api.Operation, error) {
	plan, err := b.PlanMove(ctx, name, req)
	if err != nil {
		return api.Operation{}, err
	}
	if !plan.Possible {
		return api.Operation{}, api.Errorf(api.Precondition, "move %q: %s; what would help: %s", name, plan.Reason, plan.Remedy)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	ve, err := b.ve(name)
	if err != nil {
		return api.Operation{}, err
	}
	var record *operation
	op := b.start("move", "ve/"+name, ve.Labels["move"], func() {
		ve.Host = req.To
		b.ves[name] = ve
		record.Result, _ = json.Marshal(api.MoveResult{
			Mode: plan.Mode, From: plan.From, To: plan.To, OutageMS: plan.OutageMS, TotalMS: plan.TotalMS, TransferredBytes: plan.Bytes,
			StateKept: plan.Mode != api.Cold, Reason: plan.Reason, StillMS: plan.OutageMS, Observer: "h3",
		})
	})
	record = b.ops[len(b.ops)-1] // the effect comes later: mu is held until here
	return op, nil
}
