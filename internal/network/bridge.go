package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/api"
)

// gatewayLinkLocal is what VEs know their IPv6 gateway by. A bridge without ports would get no link-local address by
// itself, and router advertisements need one from the first VE on.
var gatewayLinkLocal = netip.MustParsePrefix("fe80::1/64")

// addrGenNone keeps a link from making itself a link-local address (IN6_ADDR_GEN_MODE_NONE in linux/if_link.h).
const addrGenNone = 1

// bridgeUp makes the bridge, or adopts the one that an earlier start made, and returns once its addresses can be used.
func bridgeUp(cfg Config, sys *sysctls, log *slog.Logger) error {
	link, err := findLink(cfg.Bridge)
	switch {
	case err != nil:
		return fmt.Errorf("network %q: %w", cfg.Name, err)
	case link == nil:
		if link, err = bridgeAdd(cfg); err != nil {
			return err
		}
		log.Info("bridge made", "network", cfg.Name, "bridge", cfg.Bridge, "ipv4", cfg.IPv4, "ipv6", cfg.IPv6)
	case !isOwn(cfg, link):
		return api.Errorf(api.Conflict, "network %q: link %q exists and is not this network's bridge (type %s, address %s): rename or delete it", cfg.Name, cfg.Bridge, link.Type(), link.Attrs().HardwareAddr)
	}
	// A host may have IPv6 off by default, and a bridge must not take its own VEs for routers.
	for _, s := range []setting{{"disable_ipv6", "0"}, {"accept_ra", "0"}} {
		if err := sys.write("net/ipv6/conf/"+cfg.Bridge+"/"+s.name, s.value); err != nil {
			return fmt.Errorf("network %q: %w", cfg.Name, err)
		}
	}
	if err := bridgeConfigure(cfg, link); err != nil {
		return fmt.Errorf("network %q: bridge %q: %w", cfg.Name, cfg.Bridge, err)
	}
	return nil
}

// bridgeAdd makes the bridge, unless its prefixes would take addresses away from something that the host can reach now.
func bridgeAdd(cfg Config) (netlink.Link, error) {
	routes, err := hostRoutes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		for _, own := range []netip.Prefix{cfg.IPv4, cfg.IPv6} {
			// A wider route through a router (a VPN's 10.0.0.0/8) lives well with ours inside it.
			if r.dst.Overlaps(own) && (r.direct || r.dst.Bits() >= own.Bits()) {
				return nil, api.Errorf(api.Conflict, "network %q: %s overlaps %s, which this host routes to %s: give the network another prefix", cfg.Name, own.Masked(), r.dst, r.device)
			}
		}
	}
	no := false
	// Without a querier on the network, snooping can only lose multicast, and with it neighbour discovery.
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &no}
	bridge.Name, bridge.MTU, bridge.HardwareAddr = cfg.Bridge, cfg.MTU, cfg.bridgeMAC()
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("network %q: add bridge %q: %w", cfg.Name, cfg.Bridge, err)
	}
	return findLink(cfg.Bridge)
}

// bridgeConfigure adds what is not there yet. Addresses are usable at once: nobody else can have them, so duplicate
// address detection is left out.
func bridgeConfigure(cfg Config, link netlink.Link) error {
	if link.Attrs().MTU != cfg.MTU {
		if err := netlink.LinkSetMTU(link, cfg.MTU); err != nil {
			return err
		}
	}
	if link.Attrs().RawFlags&unix.IFF_UP == 0 {
		if err := netlink.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	for _, p := range []netip.Prefix{cfg.IPv4, cfg.IPv6, gatewayLinkLocal} {
		if err := netlink.AddrAdd(link, address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// bridgeDown removes the bridge; VEs' interfaces that are still plugged lose their network.
func bridgeDown(cfg Config) error {
	link, err := ownBridge(cfg)
	if err != nil || link == nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("network %q: delete bridge %q: %w", cfg.Name, cfg.Bridge, err)
	}
	return nil
}

// ownBridge finds the network's bridge; nil when there is none.
func ownBridge(cfg Config) (netlink.Link, error) {
	link, err := findLink(cfg.Bridge)
	if err != nil || link == nil || !isOwn(cfg, link) {
		return nil, err
	}
	return link, nil
}

// isOwn tells our bridge from another link of that name.
func isOwn(cfg Config, link netlink.Link) bool {
	return link.Type() == "bridge" && link.Attrs().HardwareAddr.String() == cfg.bridgeMAC().String()
}

// Taken is what a new network must not overlap: every prefix that this host has an address in or a route to, save for
// default routes.
func Taken() ([]netip.Prefix, error) {
	routes, err := hostRoutes()
	if err != nil {
		return nil, err
	}
	taken := make([]netip.Prefix, len(routes))
	for i, r := range routes {
		taken[i] = r.dst
	}
	return taken, nil
}

// route is a route of this host. direct: its addresses are on the device's own segment.
type route struct {
	dst    netip.Prefix
	device string
	direct bool
}

// hostRoutes are the routes of all tables, except default, loopback, link-local and multicast ones.
func hostRoutes() ([]route, error) {
	found, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var routes []route
	for _, r := range found {
		if r.Dst == nil {
			continue
		}
		addr, _ := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		dst := netip.PrefixFrom(addr.Unmap(), ones)
		if !dst.IsValid() || ones == 0 || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			continue
		}
		routes = append(routes, route{dst: dst.Masked(), device: names[r.LinkIndex], direct: r.Gw == nil && len(r.MultiPath) == 0})
	}
	return routes, nil
}

// dump repeats a listing that the kernel says was interrupted by a change.
func dump[T any](list func() ([]T, error)) (found []T, err error) {
	for range 10 {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return found, err
}

// findLink finds a link by name; nil when there is none.
func findLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %q: %w", name, err)
	}
	return link, nil
}

// address is a prefix as netlink wants it.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}
