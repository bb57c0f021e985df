package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"polder/api"
)

// entries are what a kernel knows of VEs on other hosts.
type entries struct {
	ports      map[mac]int        // the bridge's: by which port; only those that were set, not learned
	hosts      map[mac]netip.Addr // the VXLAN device's: to which host
	neighbours map[netip.Addr]mac // the bridge's own, permanent: by which it answers for them
}

func newEntries() entries {
	return entries{ports: map[mac]int{}, hosts: map[mac]netip.Addr{}, neighbours: map[netip.Addr]mac{}}
}

// tables reads and changes the kernel's entries. The links are by index; device and own are 0 when they are not there.
type tables struct {
	handle         *netlink.Handle
	bridge, device int
	own            int // the host's own port
}

// read reads all entries, but for the neighbours that the host itself is.
func (t tables) read() (entries, error) {
	have := newEntries()
	forwarding, err := dump(func() ([]netlink.Neigh, error) {
		return t.handle.NeighListExecute(netlink.Ndmsg{Family: unix.AF_BRIDGE})
	})
	if err != nil {
		return have, fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, n := range forwarding {
		have.note(n, t)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := dump(func() ([]netlink.Neigh, error) { return t.handle.NeighList(t.bridge, family) })
		if err != nil {
			return have, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range list {
			addr, ok := netip.AddrFromSlice(n.IP)
			if !ok || n.State&netlink.NUD_PERMANENT == 0 || len(n.HardwareAddr) != len(mac{}) {
				continue
			}
			if m := mac(n.HardwareAddr); t.own == 0 || have.ports[m] != t.own {
				have.neighbours[addr] = m
			}
		}
	}
	return have, nil
}

// note takes in a forwarding entry of the bridge or of the device.
func (e entries) note(n netlink.Neigh, t tables) {
	if len(n.HardwareAddr) != len(mac{}) {
		return
	}
	m := mac(n.HardwareAddr)
	switch {
	case n.Flags&netlink.NTF_SELF != 0 && n.LinkIndex == t.device:
		if addr, ok := netip.AddrFromSlice(n.IP); ok {
			e.hosts[m] = addr
		}
	case n.MasterIndex == t.bridge && n.State&netlink.NUD_NOARP != 0:
		e.ports[m] = n.LinkIndex
	}
}

// readOne reads the forwarding entries of one MAC. Its neighbours are not read: they are set anew, or dropped.
func (t tables) readOne(m mac) (entries, error) {
	have := newEntries()
	for _, table := range []uint8{netlink.NTF_MASTER, netlink.NTF_SELF} {
		n, err := forwarding(t.device, table, m)
		if err != nil {
			return have, fmt.Errorf("look up %s: %w", m, err)
		}
		if n != nil {
			have.note(*n, t)
		}
	}
	return have, nil
}

// forwarding looks up a MAC in the table of a bridge's port: the bridge's, or its own. nil: it is not there.
func forwarding(port int, table uint8, m mac) (*netlink.Neigh, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(port), Flags: table})
	req.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, m[:]))
	found, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if errors.Is(err, unix.ENOENT) || err == nil && len(found) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return netlink.NeighDeserialize(found[0])
}

// wanted is what the kernel has to know of remotes. What can't be, or is here, is left out.
func (t tables) wanted(cfg Config, u Underlay, remotes []Remote, have entries) (want entries, invalid error) {
	want = newEntries()
	for _, r := range remotes {
		m, err := macKey(r.MAC)
		host := r.Host
		if err == nil {
			host, err = cfg.insideOf(u, r.Host)
		}
		switch {
		case err != nil:
			invalid = errors.Join(invalid, fmt.Errorf("ve %q: %w", r.Name, err))
			continue
		case !sameFamily(u.Self, r.Host):
			invalid = errors.Join(invalid, api.Errorf(api.Precondition, "ve %q: its host's address %q can't be reached from %q: give all hosts addresses of one family", r.Name, r.Host, u.Self))
			continue
		case t.isHere(have.ports[m]):
			continue
		}
		want.ports[m], want.hosts[m] = t.device, host
		for _, addr := range r.neighbours(m) {
			want.neighbours[addr] = m
		}
	}
	return want, invalid
}

// isHere says whether a VE is on this host, having an entry for this port. A VE that died can leave its port behind.
func (t tables) isHere(port int) bool {
	if port == 0 || port == t.device {
		return false
	}
	link, err := t.handle.LinkByIndex(port)
	return err == nil && link.Attrs().OperState != netlink.OperDown && link.Attrs().OperState != netlink.OperLowerLayerDown
}

// entryChange is one entry to be set, or to be dropped.
type entryChange struct {
	drop bool
	mac  mac
	host netip.Addr // of the device
	addr netip.Addr // of a neighbour
}

// difference is what leads from have to want, in an order in which nothing is sent into the void: a packet is directed to the
// device when that knows where to, and no longer when it is about to forget.
func (t tables) difference(have, want entries) []entryChange {
	var before, after []entryChange
	for m, host := range want.hosts {
		if have.hosts[m] != host {
			before = append(before, entryChange{mac: m, host: host})
		}
	}
	for addr, m := range want.neighbours {
		if have.neighbours[addr] != m {
			before = append(before, entryChange{mac: m, addr: addr})
		}
	}
	for m := range want.ports {
		if have.ports[m] != t.device {
			after = append(after, entryChange{mac: m})
		}
	}
	return append(append(before, after...), t.dropped(have, want)...)
}

func (t tables) dropped(have, want entries) []entryChange {
	var first, last []entryChange
	for m, port := range have.ports {
		if port == t.device && want.ports[m] == 0 {
			first = append(first, entryChange{drop: true, mac: m})
		}
	}
	for addr, m := range have.neighbours {
		if _, ok := want.neighbours[addr]; !ok {
			first = append(first, entryChange{drop: true, mac: m, addr: addr})
		}
	}
	for m, host := range have.hosts {
		if !want.hosts[m].IsValid() {
			last = append(last, entryChange{drop: true, mac: m, host: host})
		}
	}
	return append(first, last...)
}

// apply makes the changes; one that fails does not keep others from being made.
func (t tables) apply(changes []entryChange) error {
	var failed error
	for _, c := range changes {
		err := t.set(c)
		if c.drop && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)) {
			continue
		}
		failed = errors.Join(failed, wrap(err, "entry of %s", c.mac))
	}
	return failed
}

func (t tables) set(c entryChange) error {
	n := portEntry(net.HardwareAddr(c.mac[:]), t.device)
	switch {
	case c.host.IsValid():
		n.Flags, n.State, n.IP = netlink.NTF_SELF, netlink.NUD_PERMANENT, c.host.AsSlice()
	case c.addr.IsValid():
		n = &netlink.Neigh{LinkIndex: t.bridge, State: netlink.NUD_PERMANENT, IP: c.addr.AsSlice(), HardwareAddr: n.HardwareAddr}
	}
	if c.drop {
		return t.handle.NeighDel(n)
	}
	return t.handle.NeighSet(n)
}
