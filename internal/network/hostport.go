package network

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/api"
)

// A host has a port of its own in the network, with a lease like a VE's: what it sends from there, such as probes, reaches VEs
// wherever they are, and their answers come back to this host. The gateway's addresses would not do: every host has them.
//
// The port is a veth pair, of which one end is on the bridge. The kernel knows nothing of the addresses: packets for them are
// read from the other end (AF_PACKET), and it is the bridge that answers for them when they are asked for.

// hostPort is the name of the end that the host reads from, hostPortOuter that of the end on the bridge.
func (c Config) hostPort() string      { return c.Bridge + "-h" }
func (c Config) hostPortOuter() string { return c.Bridge + "-p" }

// hostPortFlags keep the port to what is sent to it alone.
func hostPortFlags() portFlags {
	return silent(portFlag{unix.IFLA_BRPORT_PROXYARP, true}, portFlag{unix.IFLA_BRPORT_NEIGH_SUPPRESS, true})
}

// hostPortUp makes the port, or mends it, and returns the index of the end to read from. It takes some hundred microseconds when all
// is there.
func (f *Fabric) hostPortUp(cfg Config, l Lease) (int, error) {
	f.overlay.Lock()
	defer f.overlay.Unlock()
	bridge, err := f.bridge(cfg.Name)
	if err != nil {
		return 0, err
	}
	m, err := macKey(l.MAC)
	if err != nil {
		return 0, err
	}
	inner, outer, err := hostPortPair(cfg)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(silence(cfg.hostPort()), silence(cfg.hostPortOuter())); err != nil {
		return 0, err
	}
	// The kernel must not answer for the gateway from this end.
	if err := netlink.LinkSetARPOff(inner); err != nil {
		return 0, fmt.Errorf("configure %q: %w", cfg.hostPort(), err)
	}
	if err := hostPortJoin(outer, bridge, m, l); err != nil {
		return 0, fmt.Errorf("configure %q: %w", cfg.hostPortOuter(), err)
	}
	return inner.Attrs().Index, errors.Join(netlink.LinkSetUp(outer), netlink.LinkSetUp(inner))
}

// hostPortPair finds the pair, or makes it.
func hostPortPair(cfg Config) (inner, outer netlink.Link, err error) {
	for range 2 {
		if inner, err = findLink(cfg.hostPort()); err != nil {
			return nil, nil, err
		}
		if outer, err = findLink(cfg.hostPortOuter()); err != nil {
			return nil, nil, err
		}
		if inner != nil && outer != nil {
			if inner.Attrs().ParentIndex != outer.Attrs().Index {
				break
			}
			return inner, outer, nil
		}
		pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: cfg.hostPortOuter(), PeerTxQLen: -1}
		pair.Name, pair.MTU = cfg.hostPort(), cfg.MTU
		if err := netlink.LinkAdd(pair); err != nil {
			return nil, nil, fmt.Errorf("add veth pair %q and %q: %w", pair.Name, pair.PeerName, err)
		}
	}
	return nil, nil, api.Errorf(api.Conflict, "links %q and %q exist and are not this network's: rename or delete them", cfg.hostPort(), cfg.hostPortOuter())
}

// hostPortJoin puts the outer end on the bridge, which then knows its addresses.
func hostPortJoin(outer netlink.Link, bridge int, m mac, l Lease) error {
	index := outer.Attrs().Index
	if err := netlink.LinkSetMasterByIndex(outer, bridge); err != nil {
		return err
	}
	if err := setPort(index, hostPortFlags()); err != nil {
		return err
	}
	if err := netlink.NeighSet(portEntry(net.HardwareAddr(m[:]), index)); err != nil {
		return err
	}
	for _, addr := range l.neighbours(m) {
		n := &netlink.Neigh{LinkIndex: bridge, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: m[:]}
		if err := netlink.NeighSet(n); err != nil {
			return err
		}
	}
	return nil
}
