package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/api"
)

// vxlanPort is where hosts send each other VEs' packets (RFC 7348).
const vxlanPort = 4789

// overlayUp makes the VXLAN device and puts it on the bridge, or mends the one that is there, and returns its index, and whether it
// is new.
func overlayUp(cfg Config, u Underlay, bridge int, log *slog.Logger) (index int, made bool, err error) {
	name := cfg.overlayLink()
	link, err := overlayFind(cfg, u)
	if err != nil {
		return 0, false, err
	}
	if link == nil {
		if err := cfg.checkUnderlay(u); err != nil {
			log.Warn("ves must send smaller packets to other hosts", "network", cfg.Name, "reason", err)
		}
		if link, err = overlayAdd(cfg, u); err != nil {
			return 0, false, err
		}
		made = true
		log.Info("overlay made", "network", cfg.Name, "device", name, "vni", cfg.vni(), "address", u.Self)
	}
	attrs := link.Attrs()
	if attrs.MTU != cfg.MTU {
		if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
			return 0, false, fmt.Errorf("set mtu %d of %q: %w", cfg.MTU, name, err)
		}
	}
	if attrs.MasterIndex != bridge {
		// A port joins the bridge with everything open: it comes up when that is changed.
		if err := errors.Join(netlink.LinkSetDown(link), netlink.LinkSetMasterByIndex(link, bridge)); err != nil {
			return 0, false, fmt.Errorf("put %q on the bridge: %w", name, err)
		}
	}
	if err := setPort(attrs.Index, overlayPort()); err != nil {
		return 0, false, fmt.Errorf("configure port %q: %w", name, err)
	}
	return attrs.Index, made, wrap(netlink.LinkSetUp(link), "set %q up", name)
}

// overlayFind finds the device; nil when there is none. One that differs in what can't be changed is removed: until the new one has
// its entries, VEs on different hosts are cut off from each other.
func overlayFind(cfg Config, u Underlay) (netlink.Link, error) {
	name := cfg.overlayLink()
	link, err := findLink(name)
	if err != nil || link == nil || isOverlay(link, cfg, u) {
		return link, err
	}
	if link.Type() != "vxlan" {
		return nil, api.Errorf(api.Conflict, "link %q exists and is of type %s: rename or delete it", name, link.Type())
	}
	return nil, wrap(netlink.LinkDel(link), "delete %q", name)
}

// overlayAdd makes the device; it stays down.
func overlayAdd(cfg Config, u Underlay) (netlink.Link, error) {
	device := &netlink.Vxlan{
		LinkAttrs: netlink.NewLinkAttrs(), VxlanId: cfg.vni(), SrcAddr: u.Self.AsSlice(), Port: vxlanPort, Learning: false,
	}
	device.Name, device.MTU = cfg.overlayLink(), cfg.MTU
	err := netlink.LinkAdd(device)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, api.Errorf(api.Unsupported, "this kernel has no vxlan: modprobe vxlan")
	}
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EADDRINUSE) {
		return nil, api.Errorf(api.Conflict, "another program has udp port %d (see: ip -d link show type vxlan): %w", vxlanPort, err)
	}
	if err != nil {
		return nil, fmt.Errorf("add %q: %w", device.Name, err)
	}
	return device, silence(device.Name)
}

// isOverlay says whether a link is the device as overlayAdd makes it.
func isOverlay(link netlink.Link, cfg Config, u Underlay) bool {
	v, ok := link.(*netlink.Vxlan)
	return ok && v.VxlanId == cfg.vni() && v.Port == vxlanPort && !v.Learning && v.SrcAddr.Equal(net.IP(u.Self.AsSlice()))
}

// linkDown removes a link of ours; one that is not there is no error, and one of another kind is not ours.
func linkDown(name, kind string) error {
	link, err := findLink(name)
	if err == nil && link != nil && link.Type() == kind {
		err = netlink.LinkDel(link)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return wrap(err, "delete %q", name)
}

// sameFamily says whether hosts with these addresses can reach each other.
func sameFamily(a, b netip.Addr) bool { return a.IsValid() && b.IsValid() && a.Is4() == b.Is4() }
