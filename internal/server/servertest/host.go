package servertest

import (
	"context"
	"slices"
	"time"

	"polder/api"
)

// Hosts implements server.Backend: h1 has all VEs, h2 is down and has none; and those of AddHost.
func (b *Backend) Hosts(ctx context.Context) ([]api.Host, error) {
	ves, err := b.VEs(ctx)
	capabilities, _ := b.Capabilities(ctx)
	since := epoch.Add(time.Hour)
	b.mu.Lock()
	more := slices.Clone(b.hosts)
	b.mu.Unlock()
	return append([]api.Host{{
		Name: "h1", State: api.HostReady, Address: "192.0.2.1:7440", Site: "a", Role: api.RoleMember, Version: "v0", Kernel: "6.12.0", CPUs: 2,
		MemoryBytes: 4 * api.GiB, FreeMemoryBytes: 3 * api.GiB, PoolFreeBytes: 6 * api.GiB, VEs: len(ves), BootedAt: epoch, JoinedAt: epoch,
		Capabilities: capabilities,
	}, {
		Name: "h2", State: api.HostUnreachable, Address: "192.0.2.2:7440", Role: api.RoleClient, Version: "v0", Kernel: "6.12.0", CPUs: 2,
		MemoryBytes: 4 * api.GiB, BootedAt: epoch, JoinedAt: epoch, Capabilities: []api.Capability{}, UnreachableSince: &since,
	}}, more...), err
}

// Host implements server.Backend.
func (b *Backend) Host(ctx context.Context, name string) (api.Host, error) {
	hosts, err := b.Hosts(ctx)
	if err != nil {
		return api.Host{}, err
	}
	for _, h := range hosts {
		if h.Name == name {
			return h, nil
		}
	}
	return api.Host{}, api.Errorf(api.NotFound, "host %q not found; see: polder host list", name)
}

// JoinToken implements server.Backend.
func (b *Backend) JoinToken(_ context.Context, req api.JoinTokenRequest) (api.JoinToken, error) {
	life := time.Hour
	if req.ExpiresSeconds > 0 {
		life = time.Duration(req.ExpiresSeconds) * time.Second
	}
	return api.JoinToken{Token: "polder-join-x", ExpiresAt: epoch.Add(life), Advice: "two hosts do not survive each other"}, nil
}

// RemoveHost implements server.Backend.
func (b *Backend) RemoveHost(ctx context.Context, name string, force bool) (api.HostRemoval, error) {
	h, err := b.Host(ctx, name)
	switch {
	case err != nil:
		return api.HostRemoval{}, err
	case h.State == api.HostReady && !force:
		return api.HostRemoval{}, api.Errorf(api.Precondition, "remove host %q: it is alive: stop polder there first, or use --force", name)
	}
	return api.HostRemoval{Name: name, Lost: []string{}}, nil
}
