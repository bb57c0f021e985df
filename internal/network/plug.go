package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// loopback is the index of lo in every network namespace.
const loopback = 1

// Waiting for packets to pass: it takes a fraction of a millisecond, or some when the host is busy.
const (
	passGrace = 200 * time.Millisecond
	passRetry = 100 * time.Microsecond
)

// Veth implements model.Plug. The pair is made in one request, with the container's end in its namespace from the start.
func (f *Fabric) Veth(_ context.Context, nic model.NIC, pid int) error {
	if err := f.veth(nic, pid); err != nil {
		return fmt.Errorf("plug %q of process %d into network %q: %w", nic.Name, pid, nic.Network, err)
	}
	return nil
}

func (f *Fabric) veth(nic model.NIC, pid int) error {
	mac, err := hardwareAddr(nic.MAC)
	if err != nil {
		return err
	}
	bridge, err := f.bridge(nic.Network)
	if err != nil {
		return err
	}
	here, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer func() { _ = here.Close() }()
	there, err := netns.GetFromPid(pid)
	if errors.Is(err, os.ErrNotExist) {
		return api.Errorf(api.Precondition, "no such process")
	}
	if err != nil {
		return fmt.Errorf("open its network namespace: %w", err)
	}
	defer func() { _ = there.Close() }()
	if here.Equal(there) {
		return api.Errorf(api.Precondition, "it is in the host's network namespace")
	}
	inside, err := netlink.NewHandleAt(there, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter its network namespace: %w", err)
	}
	defer inside.Close()

	end := &netlink.Veth{
		LinkAttrs: netlink.NewLinkAttrs(), PeerName: nic.HostName, PeerNamespace: netlink.NsFd(here), PeerTxQLen: -1,
	}
	end.Name, end.Index, end.MTU, end.HardwareAddr, end.Flags = nic.Name, innerIndex(mac), nic.MTU, mac, net.FlagUp
	if err := addVeth(inside, end); err != nil {
		return err
	}
	// Before there is a carrier, else the kernel makes the same address itself and takes a second to test it.
	linkLocal := netip.PrefixFrom(eui64(gatewayLinkLocal, mac), gatewayLinkLocal.Bits())
	if err := addAddress(inside, end, linkLocal); err != nil {
		return err
	}
	port, err := attach(nic, bridge)
	if err != nil {
		return err
	}
	if err := configureInside(inside, end, nic); err != nil {
		return err
	}
	return await(inside, nic, end.Index, port, bridge)
}

// addVeth makes the pair. One that an earlier, cut-off call made is kept; other remains of it are removed.
func addVeth(inside *netlink.Handle, end *netlink.Veth) error {
	err := inside.LinkAdd(end)
	if !errors.Is(err, unix.EEXIST) {
		return wrap(err, "add veth pair %q and %q", end.Name, end.PeerName)
	}
	outer, err := findLink(end.PeerName)
	if err != nil {
		return err
	}
	if inner, err := inside.LinkByIndex(end.Index); err == nil {
		if outer != nil && inner.Attrs().Name == end.Name && inner.Attrs().ParentIndex == outer.Attrs().Index {
			return wrap(inside.LinkSetUp(end), "set %q up", end.Name)
		}
		if err := inside.LinkDel(inner); err != nil {
			return fmt.Errorf("delete old %q: %w", inner.Attrs().Name, err)
		}
		if outer, err = findLink(end.PeerName); err != nil {
			return err
		}
	}
	if outer != nil {
		if err := netlink.LinkDel(outer); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete old %q: %w", end.PeerName, err)
		}
	}
	return wrap(inside.LinkAdd(end), "add veth pair %q and %q", end.Name, end.PeerName)
}

// addAddress adds an address; none is tentative for a second, as there can't be duplicates.
func addAddress(inside *netlink.Handle, end netlink.Link, p netip.Prefix) error {
	if err := inside.AddrAdd(end, address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

// configureInside gives the container's end its addresses and routes.
func configureInside(inside *netlink.Handle, end *netlink.Veth, nic model.NIC) error {
	if err := inside.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: loopback}}); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	for _, p := range nic.Addresses {
		if err := addAddress(inside, end, p); err != nil {
			return err
		}
	}
	for _, gateway := range nic.Gateways {
		every := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gateway.Is6() {
			every = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		err := inside.RouteAdd(&netlink.Route{LinkIndex: end.Index, Dst: ipNet(every), Gw: gateway.AsSlice()})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add default route by %s: %w", gateway, err)
		}
	}
	return nil
}

// await returns when packets pass, which the kernel brings about some time after all is set up. What is sent before is
// lost, and a lost address request costs a second.
func await(inside *netlink.Handle, nic model.NIC, end, port, bridge int) error {
	for deadline := time.Now().Add(passGrace); ; time.Sleep(passRetry) {
		passing, err := passes(inside, nic, end, port, bridge)
		// When it takes that long, packets pass later, or something else is wrong with the host: neither is a reason
		// not to start a VE.
		if err != nil || passing || time.Now().After(deadline) {
			return wrap(err, "wait for %q", nic.Name)
		}
	}
}

// passes says whether both ends and the bridge have a carrier and the addresses are reachable. Looking at a link also
// makes the kernel (6.8 and later) take note of its carrier at once: that of a bridge whose last port has left may be
// late by a second.
func passes(inside *netlink.Handle, nic model.NIC, end, port, bridge int) (bool, error) {
	inner, err := inside.LinkByIndex(end)
	if err != nil {
		return false, err
	}
	passing := inner.Attrs().OperState == netlink.OperUp
	for _, index := range []int{port, bridge} {
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return false, err
		}
		// A bridge that never had a port has no state, and passes packets.
		state := link.Attrs().OperState
		passing = passing && (state == netlink.OperUp || index == bridge && state == netlink.OperUnknown)
	}
	for _, p := range nic.Addresses {
		// The kernel makes the route that lets an IPv6 address receive in the background.
		routes, err := inside.RouteGet(p.Addr().AsSlice())
		passing = passing && err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	}
	return passing, nil
}

// Tap implements model.Plug.
func (f *Fabric) Tap(_ context.Context, nic model.NIC, uid uint32) error {
	bridge, err := f.bridge(nic.Network)
	if err == nil {
		err = addTap(nic.HostName, uid)
	}
	if err == nil {
		_, err = attach(nic, bridge)
	}
	return wrap(err, "plug tap %q into network %q", nic.HostName, nic.Network)
}

// addTap makes a tap device that stays when it is closed and that uid may open. One that is there is given to uid.
func addTap(name string, uid uint32) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("name %q: %w", name, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	if errors.Is(err, unix.EBUSY) {
		return nil // the VE has it open
	}
	if err != nil {
		return fmt.Errorf("make it: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(uid)); err != nil {
		return fmt.Errorf("give it to user %d: %w", uid, err)
	}
	return wrap(unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1), "keep it")
}

// Unplug implements model.Plug. The other end of a veth goes too.
func (f *Fabric) Unplug(_ context.Context, nic model.NIC) error {
	link, err := findLink(nic.HostName)
	if err == nil && link != nil {
		err = netlink.LinkDel(link)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return wrap(err, "unplug %q from network %q", nic.HostName, nic.Network)
}

// attach makes the host's end of an interface a port of the bridge, with its gate as nic.Shut says, and returns its index.
func attach(nic model.NIC, bridge int) (port int, err error) {
	link, err := findLink(nic.HostName)
	if err != nil {
		return 0, err
	}
	if link == nil {
		return 0, api.Errorf(api.Conflict, "host's end %q was removed meanwhile", nic.HostName)
	}
	if link.Attrs().MTU != nic.MTU {
		if err := netlink.LinkSetMTU(link, nic.MTU); err != nil {
			return 0, fmt.Errorf("set mtu %d: %w", nic.MTU, err)
		}
	}
	if err := silence(nic.HostName); err != nil {
		return 0, err
	}
	if nic.Shut && link.Attrs().MasterIndex != bridge {
		// A port joins with its gate open. While it is down, nothing passes.
		if err := netlink.LinkSetDown(link); err != nil {
			return 0, fmt.Errorf("set %q down: %w", nic.HostName, err)
		}
	}
	if err := netlink.LinkSetMasterByIndex(link, bridge); err != nil {
		return 0, fmt.Errorf("join bridge: %w", err)
	}
	gate := openGate
	if nic.Shut {
		gate = shutGate
	}
	if err := gate(nic, link); err != nil {
		return 0, fmt.Errorf("set gate: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("set %q up: %w", nic.HostName, err)
	}
	return link.Attrs().Index, nil
}

// silence keeps the host from sending anything of its own out of a port, such as reports of its multicast groups. What
// the bridge forwards is not affected.
func silence(link string) error {
	return (&sysctls{}).write("net/ipv6/conf/"+link+"/disable_ipv6", "1")
}

// bridge is the index of the network's bridge.
func (f *Fabric) bridge(name string) (int, error) {
	f.mu.Lock()
	cfg := f.cfg
	f.mu.Unlock()
	if cfg == nil || cfg.Name != name {
		return 0, api.Errorf(api.Precondition, "it is not up on this host")
	}
	link, err := findLink(cfg.Bridge)
	if err != nil {
		return 0, err
	}
	if link == nil {
		return 0, api.Errorf(api.Precondition, "bridge %q is gone: restart polder serve", cfg.Bridge)
	}
	return link.Attrs().Index, nil
}

// wrap adds context to an error; nil stays nil.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
