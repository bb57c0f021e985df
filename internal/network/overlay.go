package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"polder/api"
)

// Hosts are joined by a VXLAN device on every bridge. Nothing is learned and nothing is flooded through it: each host is told
// where every VE is (bridge: MAC to the device, device: MAC to the host), and answers for the VEs of other hosts' when one
// of its own asks for their MAC. What is for all (broadcast, multicast) stays on its host; so does the gateway, which has
// the same addresses everywhere.

// Underlay is how hosts reach each other.
type Underlay struct {
	Self netip.Addr // this host's address, as the other hosts use it; zero: a host alone, without overlay
	MTU  int        // of the links between hosts; 0: not known
	// Crypt encrypts what hosts send each other; nil: it is sent as it is. All hosts of a cluster do, or none.
	Crypt *Crypt
}

// Remote is a VE, or a host's own port, on another host.
type Remote struct {
	Lease
	Host netip.Addr // the Underlay.Self of that host
}

// Bytes that VXLAN adds to a packet: outer IP, UDP, VXLAN, inner Ethernet.
const (
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
)

// SetOverlay makes this host reach the remotes, and nobody else, beyond its own VEs. It compares with what the kernel has and
// changes the difference, so it can be called at any time, by any daemon: also when the device or an entry was removed by
// others. A remote that is no longer one is forgotten; a VE whose gate is open on this host is here, whatever remotes say. One
// remote that can't be set does not keep out others.
//
// Errors: api.Precondition when the bridge is gone, api.Conflict when another program has the device's name or port,
// api.Unsupported when the kernel lacks VXLAN, or what Underlay.Crypt needs: then nothing is sent to other hosts at all.
func (f *Fabric) SetOverlay(ctx context.Context, cfg Config, u Underlay, remotes []Remote) error {
	f.overlay.Lock()
	defer f.overlay.Unlock()
	return wrap(f.setOverlay(ctx, cfg, u, remotes), "network %q: join hosts", cfg.Name)
}

func (f *Fabric) setOverlay(ctx context.Context, cfg Config, u Underlay, remotes []Remote) error {
	bridge, err := f.bridge(cfg.Name)
	if err != nil {
		return err
	}
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	t := tables{handle: h, bridge: bridge}
	if u.Self.IsValid() {
		t.device, err = f.overlayDevice(ctx, cfg, u, bridge)
	} else {
		remotes, err = nil, errors.Join(linkDown(cfg.overlayLink(), "vxlan"), cryptDown(ctx, cfg))
	}
	if err != nil {
		return err
	}
	if own, err := findLink(cfg.hostPortOuter()); err == nil && own != nil {
		t.own = own.Attrs().Index
	}
	have, err := t.read()
	if err != nil {
		return err
	}
	want, invalid := t.wanted(cfg, u, remotes, have)
	return errors.Join(invalid, t.apply(t.difference(have, want)))
}

// overlayDevice makes the VXLAN device, and what encrypts its packets.
func (f *Fabric) overlayDevice(ctx context.Context, cfg Config, u Underlay, bridge int) (int, error) {
	var err error
	if u.Crypt != nil {
		err = cryptUp(ctx, cfg, u, f.log)
	} else {
		err = cryptDown(ctx, cfg)
	}
	if err != nil {
		// Rather nothing than in the clear.
		return 0, errors.Join(err, linkDown(cfg.overlayLink(), "vxlan"))
	}
	inside, err := cfg.inside(u)
	if err != nil {
		return 0, err
	}
	device, made, err := overlayUp(cfg, inside, bridge, f.log)
	if err != nil || !made {
		return device, err
	}
	return device, f.admitHosts(ctx, cfg)
}

// admitHosts lets other hosts' packets through this host's firewall.
func (f *Fabric) admitHosts(ctx context.Context, cfg Config) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	f.mu.Lock()
	port := f.dnsPort
	f.mu.Unlock()
	return f.firewall(ctx, cfg, port)
}

// SetRemote tells this host where one VE is now, in a fraction of a millisecond; the entries of others are left alone. A VE whose
// gate is open here stays here.
//
// Errors: api.Precondition when there is no overlay: SetOverlay makes it.
func (f *Fabric) SetRemote(_ context.Context, cfg Config, u Underlay, r Remote) error {
	f.overlay.Lock()
	defer f.overlay.Unlock()
	return wrap(f.setRemote(cfg, u, r), "network %q: direct %q to host %s", cfg.Name, r.Name, r.Host)
}

func (f *Fabric) setRemote(cfg Config, u Underlay, r Remote) error {
	t, err := f.openTables(cfg)
	if err != nil {
		return err
	}
	defer t.handle.Close()
	m, err := macKey(r.MAC)
	if err != nil {
		return err
	}
	have, err := t.readOne(m)
	if err != nil {
		return err
	}
	want, err := t.wanted(cfg, u, []Remote{r}, have)
	if err != nil {
		return err
	}
	return t.apply(t.difference(have, want))
}

// DropRemote forgets where a VE is: it is deleted, or it has come here. One that is not known is no error.
func (f *Fabric) DropRemote(_ context.Context, cfg Config, l Lease) error {
	f.overlay.Lock()
	defer f.overlay.Unlock()
	return wrap(f.dropRemote(cfg, l), "network %q: forget where %q is", cfg.Name, l.Name)
}

func (f *Fabric) dropRemote(cfg Config, l Lease) error {
	t, err := f.openTables(cfg)
	if api.KindOf(err) == api.Precondition {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.handle.Close()
	m, err := macKey(l.MAC)
	if err != nil {
		return err
	}
	have, err := t.readOne(m)
	if err != nil {
		return err
	}
	for _, addr := range l.neighbours(m) {
		have.neighbours[addr] = m
	}
	return t.apply(t.difference(have, newEntries()))
}

// openTables opens the tables of an overlay that is there.
func (f *Fabric) openTables(cfg Config) (tables, error) {
	link, err := findLink(cfg.overlayLink())
	if err != nil {
		return tables{}, err
	}
	if link == nil || link.Attrs().MasterIndex == 0 {
		return tables{}, api.Errorf(api.Precondition, "this host is not joined with others")
	}
	h, err := netlink.NewHandle()
	return tables{handle: h, bridge: link.Attrs().MasterIndex, device: link.Attrs().Index}, err
}

// neighbours are the addresses by which others know a VE: its own, and the link-local one that most systems give themselves.
func (l Lease) neighbours(m mac) []netip.Addr {
	return []netip.Addr{l.IPv4.Addr(), l.IPv6.Addr(), eui64(gatewayLinkLocal, m[:])}
}

// mac is a hardware address that can be compared.
type mac [6]byte

func macKey(text string) (mac, error) {
	addr, err := hardwareAddr(text)
	if err != nil {
		return mac{}, err
	}
	return mac(addr), nil
}

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

// overlayLink is the name of the VXLAN device.
func (c Config) overlayLink() string { return c.Bridge + "-x" }

// vni tells this network's packets from those of others between the same hosts. It follows from what is the same on all hosts.
func (c Config) vni() int {
	d := digest("vni", c.Name+" "+c.IPv4.String()+" "+c.IPv6.String())
	return int(d[0])<<16 | int(d[1])<<8 | int(d[2]) | 1
}

// checkUnderlay says whether the network's packets fit between hosts.
func (c Config) checkUnderlay(u Underlay) error {
	overhead := overhead4
	if u.Self.Is6() {
		overhead = overhead6
	}
	if u.MTU != 0 && c.MTU+overhead > u.MTU {
		return fmt.Errorf("mtu %d does not fit into %d between hosts: want %d there", c.MTU, u.MTU, c.MTU+overhead)
	}
	return nil
}
