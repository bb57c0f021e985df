package host

import (
	"context"
	"net/netip"
	"time"

	"polder/api"
	"polder/internal/network"
	"polder/internal/store"
)

// settleTime gathers changes of records that come together into one look at all of them.
const settleTime = 20 * time.Millisecond

// tendNetwork keeps this host's part of the network true: names and addresses of all VEs, and which host each is on. A VE that
// changes hosts is followed at once, everything else within settleTime. It also sees what is to be swept.
func (h *Host) tendNetwork() {
	ves, hosts, ports, networks := h.ves.Watch(h.ctx, 0), h.cluster.Watch(h.ctx), h.ports.Watch(h.ctx, 0), h.networks.Watch(h.ctx, 0)
	ticker := time.NewTicker(tendInterval)
	defer ticker.Stop()
	later := time.NewTimer(0)
	defer later.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case c, ok := <-ves:
			if !ok {
				return
			}
			h.follow(c)
			later.Reset(settleTime)
		case <-hosts:
			later.Reset(settleTime)
		case <-ports:
			later.Reset(settleTime)
		case <-networks:
			later.Reset(settleTime)
		case <-ticker.C:
			h.tendOnce()
		case <-later.C:
			h.tendOnce()
		}
	}
}

func (h *Host) tendOnce() {
	err := h.publishLeases(h.ctx)
	if err == nil {
		err = h.overlay(h.ctx)
	}
	if err != nil && h.ctx.Err() == nil {
		h.log.Warn("this host's part of the network is not up to date", "network", h.network.Name, "error", err)
	}
}

// follow heeds one change of a VE's record at once: where it is now, and whether it has left something here.
func (h *Host) follow(c store.Change[VE]) {
	if c.Value == nil {
		h.sweepSoon() // a VE that was deleted may have been on its way here before
		return
	}
	if c.Prev == nil {
		return
	}
	if h.mine(*c.Prev) && !h.mine(*c.Value) {
		h.sweepSoon()
	}
	if c.Value.Host == c.Prev.Host || c.Value.Host == h.cfg.Name {
		return // what comes here is seen to by its arrival
	}
	if err := h.pointTo(h.ctx, *c.Value); err != nil && h.ctx.Err() == nil {
		h.log.Warn("a ve that moved can't be followed", "ve", c.Value.Name, "host", c.Value.Host, "error", err)
	}
}

// pointTo makes this host send what is for a VE to the host that it is on now.
func (h *Host) pointTo(ctx context.Context, v VE) error {
	at, self, err := h.underlay(ctx)
	if err != nil {
		return err
	}
	return h.fabric.SetRemote(ctx, h.network, self, network.Remote{Lease: v.Lease, Host: at[v.Host]})
}

// underlay is where the hosts are, and this one among them.
func (h *Host) underlay(ctx context.Context) (at map[string]netip.Addr, self network.Underlay, err error) {
	hosts, err := h.cluster.Hosts(ctx)
	if err != nil {
		return nil, self, err
	}
	at = map[string]netip.Addr{}
	for _, s := range hosts {
		if s.Address == "" {
			continue
		}
		if at[s.Name], err = underlayOf(s.Address); err != nil {
			return nil, self, err
		}
		if s.Name == h.cfg.Name {
			self = network.Underlay{Self: at[s.Name], MTU: s.MTU}
		}
	}
	self.Crypt = h.crypt(hosts, at)
	return at, self, nil
}

// overlay makes the tables of who is where equal to the records.
func (h *Host) overlay(ctx context.Context) error {
	cfg, err := h.networks.Get(ctx, h.network.Name)
	if err != nil {
		return err
	}
	h.encrypted.Store(cfg.Value.Encrypted)
	at, self, err := h.underlay(ctx)
	if err != nil {
		return err
	}
	ves, err := h.ves.List(ctx)
	if err != nil {
		return err
	}
	ports, err := h.ports.List(ctx)
	if err != nil {
		return err
	}
	var remotes []network.Remote
	place := func(host string, lease network.Lease) {
		if addr, ok := at[host]; host != h.cfg.Name && ok {
			remotes = append(remotes, network.Remote{Lease: lease, Host: addr})
		}
	}
	for _, rec := range ves {
		place(rec.Value.Host, rec.Value.Lease)
	}
	for _, rec := range ports {
		place(rec.Key, rec.Value)
	}
	return h.fabric.SetOverlay(ctx, h.network, self, remotes)
}

// underlayOf is a host's address without its port.
func underlayOf(address string) (netip.Addr, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Addr{}, api.Errorf(api.Internal, "a host's address %q: %w", address, err)
	}
	return at.Addr(), nil
}

// ownPort gives this host addresses of its own in the network, from which it probes. They are claimed like a VE's.
func (h *Host) ownPort(ctx context.Context) error {
	for {
		rec, err := h.ports.Get(ctx, h.cfg.Name)
		if err == nil {
			h.port = rec.Value
			return nil
		}
		if api.KindOf(err) != api.NotFound {
			return err
		}
		id := portOwner(h.cfg.Name)
		lease, err := h.freeLease(ctx, id)
		if err != nil {
			return err
		}
		lease.Name = h.cfg.Name
		held := claim{VE: id}
		_, err = h.store.Txn(ctx, h.ports.OpCreate(h.cfg.Name, lease),
			h.addresses.OpCreate(lease.IPv4.Addr().String(), held), h.addresses.OpCreate(lease.IPv6.Addr().String(), held))
		if kind := api.KindOf(err); err != nil && kind != api.Exists && kind != api.Conflict {
			return err
		}
	}
}
