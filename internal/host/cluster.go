package host

import (
	"context"
	"slices"

	"polder/api"
	"polder/internal/cluster"
)

// Hosts lists the hosts of the cluster, by name.
func (h *Host) Hosts(ctx context.Context) ([]api.Host, error) {
	list, err := h.cluster.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	recs, err := h.ves.List(ctx)
	if err != nil {
		return nil, err
	}
	ves := map[string]int{}
	for _, rec := range recs {
		ves[rec.Value.Host]++
	}
	advice := cluster.Advice(list)
	shown := make([]api.Host, len(list))
	for i, s := range list {
		shown[i] = showHost(s, ves[s.Name], advice)
		if s.Name == h.cfg.Name {
			shown[i].Capabilities = h.capabilities(ctx)
		}
	}
	return shown, nil
}

// Host finds one host.
func (h *Host) Host(ctx context.Context, name string) (api.Host, error) {
	hosts, err := h.Hosts(ctx)
	if err != nil {
		return api.Host{}, err
	}
	i := slices.IndexFunc(hosts, func(known api.Host) bool { return known.Name == name })
	if i < 0 {
		return api.Host{}, api.Errorf(api.NotFound, "host %q not found; see: polder host list", name)
	}
	return hosts[i], nil
}

func showHost(s cluster.Status, ves int, advice string) api.Host {
	shown := api.Host{
		Name: s.Name, State: api.HostReady, Address: s.Address, Site: s.Site, Role: s.Role, Version: s.Version, Kernel: s.Kernel,
		CPUs: s.CPUs, MemoryBytes: s.Memory, VEs: ves, BootedAt: s.BootedAt, JoinedAt: s.JoinedAt, Capabilities: s.Capabilities,
		FreeMemoryBytes: s.MemoryFree, PoolFreeBytes: s.PoolFree, Advice: advice,
	}
	if shown.Capabilities == nil {
		shown.Capabilities = []api.Capability{}
	}
	if !s.Alive {
		shown.State = api.HostUnreachable
		if !s.Since.IsZero() {
			since := s.Since
			shown.UnreachableSince = &since
		}
	}
	return shown
}

// JoinToken makes a token with which one more host joins.
func (h *Host) JoinToken(ctx context.Context, req api.JoinTokenRequest) (api.JoinToken, error) {
	return h.cluster.JoinToken(ctx, req)
}

// RemoveHost takes a host out of the cluster, with force also one that is alive or has VEs: their records are deleted.
func (h *Host) RemoveHost(ctx context.Context, name string, force bool) (api.HostRemoval, error) {
	removal := api.HostRemoval{Name: name, Lost: []string{}}
	recs, err := h.ves.List(ctx)
	if err != nil {
		return removal, err
	}
	for _, rec := range recs {
		if rec.Value.Host == name {
			removal.Lost = append(removal.Lost, rec.Key)
		}
	}
	if len(removal.Lost) > 0 && !force {
		return removal, api.Errorf(api.Precondition, "remove host %q: VEs %q are on it: move or delete them first; --force deletes their records, and what is on that host of them is lost", name, removal.Lost)
	}
	if err := h.cluster.Remove(ctx, name, force); err != nil {
		return removal, err
	}
	return removal, h.clearAway(ctx, name)
}
