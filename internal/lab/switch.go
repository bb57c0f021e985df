package lab

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"polder/api"
)

const (
	switchFile = "switch.net" // the switch's network namespace, kept by a bind mount
	bridge     = "switch"
	hostLink   = "eth0"
)

// makeSwitch makes what is missing of the switch: its namespace and the bridge in it.
func (l *Lab) makeSwitch() error {
	if !l.switchThere() {
		if err := l.makeSwitchNamespace(); err != nil {
			return api.Errorf(api.Internal, "make the lab's switch: %w", err)
		}
	}
	h, err := l.openSwitch()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := makeBridge(h); err != nil {
		return api.Errorf(api.Internal, "make the lab's switch: %w", err)
	}
	return nil
}

func makeBridge(h *netlink.Handle) error {
	snooping := false // without a querier, it makes IPv6 neighbours deaf after some minutes
	err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs(bridge), MulticastSnooping: &snooping})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	for _, name := range []string{"lo", bridge} {
		if err := setUp(h, name); err != nil {
			return err
		}
	}
	return nil
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func setUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetUp(link)
}

func (l *Lab) switchThere() bool {
	var fs unix.Statfs_t
	return unix.Statfs(l.path(switchFile), &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

func (l *Lab) makeSwitchNamespace() error {
	f, err := os.OpenFile(l.path(switchFile), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread is in the new namespace and ends with the goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", l.path(switchFile), "", unix.MS_BIND, "")
		}
		done <- err
	}()
	return <-done
}

func (l *Lab) openSwitch() (*netlink.Handle, error) {
	return openNamespace(l.path(switchFile))
}

func openNamespace(path string) (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, api.Errorf(api.Internal, "open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, api.Errorf(api.Internal, "open network namespace %s: %w", path, err)
	}
	return h, nil
}

// connect gives the host whose PID 1 is pid its eth0: the cable to the switch, addresses, and the way out when there is
// one. What is there is left alone.
func (l *Lab) connect(r *record, n, pid int, uplink bool) error {
	if err := l.plug(r, n, pid, uplink); err != nil {
		return api.Errorf(api.Internal, "connect lab host %s: %w", nameOf(n), err)
	}
	return nil
}

func (l *Lab) plug(r *record, n, pid int, uplink bool) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	if _, err := inside.LinkByName(hostLink); err != nil {
		if err := l.cable(n, int(ns)); err != nil {
			return err
		}
		if err := l.shapePort(r, nameOf(n)); err != nil {
			return err
		}
	}
	if err := setUp(inside, "lo"); err != nil {
		return err
	}
	link, err := inside.LinkByName(hostLink)
	if err != nil {
		return err
	}
	if err := inside.LinkSetUp(link); err != nil {
		return err
	}
	v4, v6 := r.address(n)
	for _, p := range []netip.Prefix{v4, v6} {
		if err := setAddress(inside, link, p); err != nil {
			return err
		}
	}
	if !uplink {
		return nil
	}
	gateway, _ := r.address(0)
	return inside.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.Addr().AsSlice()})
}

// cable joins the switch and the network namespace ns. The one of an earlier life of the host may still be there.
func (l *Lab) cable(n, ns int) error {
	h, err := l.openSwitch()
	if err != nil {
		return err
	}
	defer h.Close()
	if old, err := h.LinkByName(nameOf(n)); err == nil {
		if err := unshape(h, old); err != nil {
			return err
		}
		if err := h.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	port := &netlink.Veth{LinkAttrs: attrs(nameOf(n)), PeerName: hostLink, PeerHardwareAddr: l.mac(n), PeerNamespace: netlink.NsFd(ns)}
	if err := h.LinkAdd(port); err != nil {
		return err
	}
	return enslave(h, nameOf(n))
}

func enslave(h *netlink.Handle, name string) error {
	port, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	master, err := h.LinkByName(bridge)
	if err != nil {
		return err
	}
	if err := h.LinkSetMaster(port, master); err != nil {
		return err
	}
	return h.LinkSetUp(port)
}

func setAddress(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // addresses are the lab's own; don't wait a second for neighbours to object
	}
	return h.AddrReplace(link, a)
}

// setCable switches a host's port up or down.
func (l *Lab) setCable(n int, up bool) error {
	if !l.switchThere() {
		return api.Errorf(api.Precondition, "lab host %s is not running; start it with: polder lab start %s", nameOf(n), nameOf(n))
	}
	h, err := l.openSwitch()
	if err != nil {
		return err
	}
	defer h.Close()
	port, err := h.LinkByName(nameOf(n))
	if err != nil {
		return api.Errorf(api.Precondition, "lab host %s is not running; start it with: polder lab start %s", nameOf(n), nameOf(n))
	}
	set := h.LinkSetDown
	if up {
		set = h.LinkSetUp
	}
	if err := set(port); err != nil {
		return api.Errorf(api.Internal, "switch the port of lab host %s: %w", nameOf(n), err)
	}
	return nil
}

// cablesCut are the hosts whose port is down.
func (l *Lab) cablesCut() map[string]bool {
	cut := map[string]bool{}
	if !l.switchThere() {
		return cut
	}
	h, err := l.openSwitch()
	if err != nil {
		return cut
	}
	defer h.Close()
	links, _ := h.LinkList()
	for _, link := range links {
		cut[link.Attrs().Name] = link.Attrs().Flags&net.FlagUp == 0
	}
	return cut
}

// removeSwitch lets go of the switch's namespace: its links die with it.
func (l *Lab) removeSwitch() error {
	for {
		err := unix.Unmount(l.path(switchFile), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && (errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist)) {
			return nil
		}
		if err != nil {
			return api.Errorf(api.Internal, "remove the lab's switch: %w", err)
		}
	}
}

// machinePrefixes are what this machine has addresses or routes for.
func machinePrefixes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, api.Errorf(api.Internal, "list the machine's routes: %w", err)
	}
	var list []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			bits, _ := r.Dst.Mask.Size()
			list = append(list, netip.PrefixFrom(a.Unmap(), bits))
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return list, nil
}
