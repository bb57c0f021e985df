package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"polder/api"
	"polder/client"
)

// moveAll moves what can be moved off a host, after it has shown how.
func (a *app) moveAll(ctx context.Context, c *client.Client, m *moving, req api.MoveRequest) error {
	plans, err := planAll(ctx, c, m.from, req)
	if err != nil {
		return err
	}
	if m.plan {
		return a.show(plans, func(w io.Writer) { a.writeAll(w, m.from, plans) })
	}
	if a.output == asTable {
		a.writeAll(a.stderr, m.from, plans)
	}
	var moves []planned
	var stay []string
	for _, p := range plans {
		if !p.Possible {
			stay = append(stay, p.VE)
			continue
		}
		each := req
		each.To = p.To
		moves = append(moves, planned{p.VE, each})
	}
	err = a.moveThem(ctx, c, m.waiting.wanted(), moves)
	if err == nil && len(stay) > 0 {
		err = api.Errorf(api.Precondition, "move --all-from %s: %d of %d VEs stay there: %s; why: polder move --all-from %s --plan",
			m.from, len(stay), len(plans), strings.Join(stay, ", "), m.from)
	}
	return err
}

func (a *app) writeAll(w io.Writer, from string, plans []api.MovePlan) {
	if len(plans) == 0 {
		fmt.Fprintf(w, "there is no VE on %s\n", from)
		return
	}
	writePlans(w, plans)
}

// planAll plans the move of every VE on a host, to req.To or each to a host of its own.
func planAll(ctx context.Context, c *client.Client, from string, req api.MoveRequest) ([]api.MovePlan, error) {
	host, err := c.Host(ctx, from)
	if err != nil {
		return nil, err
	}
	ves, err := c.VEs(ctx)
	if err != nil {
		return nil, err
	}
	ves = slices.DeleteFunc(ves, func(ve api.VE) bool { return ve.Host != host.Name })
	targets := map[string]string{}
	if req.To == "" {
		hosts, err := c.Hosts(ctx)
		if err != nil {
			return nil, err
		}
		targets = spread(ves, slices.DeleteFunc(hosts, func(h api.Host) bool { return h.Name == from }))
	}
	plans := []api.MovePlan{}
	for _, ve := range ves {
		each := req
		if req.To == "" {
			each.To = targets[ve.Name]
		}
		if each.To == "" {
			plans = append(plans, staying(ve, req.Mode, api.Errorf(api.Exhausted, "no other host has %s of memory to spare", ve.MemoryBytes)))
			continue
		}
		plan, err := c.PlanMove(ctx, ve.Name, each)
		switch kind := api.KindOf(err); {
		case kind == api.NotFound && each.To == req.To, ctx.Err() != nil, client.Unreachable(err):
			return nil, err // not this VE's fault
		case err != nil:
			plan = staying(ve, req.Mode, err)
			plan.To = each.To
		}
		plans = append(plans, plan)
	}
	return plans, nil
}

// staying is the plan for a VE that can't be moved.
func staying(ve api.VE, mode api.MoveMode, err error) api.MovePlan {
	return api.MovePlan{VE: ve.Name, From: ve.Host, Mode: mode, Reason: err.Error(), Blockers: []api.Blocker{}}
}

// spread gives each VE the host that has the most free memory left then, the largest VEs first. A VE that fits nowhere gets
// none. It looks at memory only: what else a host must have is found by the plan of each move.
func spread(ves []api.VE, hosts []api.Host) map[string]string {
	free := map[string]api.Bytes{}
	var names []string
	for _, h := range hosts {
		if h.State == api.HostReady && h.Role != api.RoleWitness {
			free[h.Name] = h.FreeMemoryBytes
			names = append(names, h.Name)
		}
	}
	slices.Sort(names)
	ves = slices.Clone(ves)
	slices.SortStableFunc(ves, func(a, b api.VE) int {
		if by := int64(need(b) - need(a)); by != 0 {
			return sign(by)
		}
		return strings.Compare(a.Name, b.Name)
	})
	targets := map[string]string{}
	for _, ve := range ves {
		best := ""
		for _, name := range names {
			if free[name] >= need(ve) && (best == "" || free[name] > free[best]) {
				best = name
			}
		}
		if best != "" {
			free[best] -= need(ve)
			targets[ve.Name] = best
		}
	}
	return targets
}

// need is the memory that a VE takes on the host it comes to.
func need(ve api.VE) api.Bytes {
	if ve.State == api.Stopped || ve.State == api.Failed {
		return 0
	}
	return ve.MemoryBytes
}

func sign(n int64) int {
	if n < 0 {
		return -1
	}
	return 1
}
