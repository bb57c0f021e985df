package host

import (
	"context"
	"net/netip"
	"slices"

	"polder/api"
	"polder/internal/cluster"
	"polder/internal/network"
)

// ChangeNetwork changes a network on all hosts: each sees the record, and follows. VEs' packets between hosts are lost until both
// ends have.
func (h *Host) ChangeNetwork(ctx context.Context, name string, change api.NetworkChange) (api.Network, error) {
	if name != defaultNetwork {
		return api.Network{}, api.Errorf(api.NotFound, "network %q: no such network (see: polder network list)", name)
	}
	if change.Encrypted != nil {
		if *change.Encrypted {
			if err := h.canEncrypt(ctx); err != nil {
				return api.Network{}, err
			}
		}
		_, err := h.networks.Modify(ctx, name, func(cfg *network.Config) error {
			cfg.Encrypted = *change.Encrypted
			return nil
		})
		if err != nil {
			return api.Network{}, err
		}
		if err := h.overlay(ctx); err != nil {
			return api.Network{}, err
		}
	}
	all, err := h.Networks(ctx)
	if err != nil {
		return api.Network{}, err
	}
	return all[0], nil
}

// canEncrypt says which host stands in the way of encryption, and why.
func (h *Host) canEncrypt(ctx context.Context) error {
	hosts, err := h.cluster.Hosts(ctx)
	if err != nil {
		return err
	}
	for i, s := range hosts {
		if s.Name == h.cfg.Name {
			hosts[i].Capabilities = h.capabilities(ctx)
		}
	}
	return allEncrypt(hosts)
}

func allEncrypt(hosts []cluster.Status) error {
	for _, s := range hosts {
		i := slices.IndexFunc(s.Capabilities, func(c api.Capability) bool { return c.Name == "wireguard" })
		switch {
		case i < 0 || s.LinkKey == "" && s.Address != "":
			return api.Errorf(api.Precondition, "encrypt between hosts: host %q runs polder %s, which is not known to be able to: use this release there too, and start it", s.Name, s.Version)
		case s.Capabilities[i].Level != api.OK:
			return api.Errorf(api.Precondition, "encrypt between hosts: host %q can't: %s: %s", s.Name, s.Capabilities[i].Detail, s.Capabilities[i].Remedy)
		}
	}
	return nil
}

// crypt is how this host encrypts what it sends others; nil: it does not. at is where the hosts are.
func (h *Host) crypt(hosts []cluster.Status, at map[string]netip.Addr) *network.Crypt {
	if !h.encrypted.Load() {
		return nil
	}
	c := &network.Crypt{Key: h.cluster.LinkKey(), Peers: map[netip.Addr]string{}}
	for _, s := range hosts {
		if addr, ok := at[s.Name]; ok && s.Name != h.cfg.Name && s.LinkKey != "" {
			c.Peers[addr] = s.LinkKey
		}
	}
	return c
}
