package cluster

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"polder/api"
)

// DefaultPort is the peer port. Etcd uses the two ports after it.
const DefaultPort = 7440

// chooseAddress turns what the user said (IP[:PORT], or nothing) into the address of this host's peer port. With nothing said
// it is hint, else this host's address towards the default route, else its only address that is not of the loopback.
func chooseAddress(said string, hint netip.Addr) (string, error) {
	port := uint16(DefaultPort)
	ip := hint
	if said != "" {
		at, err := netip.ParseAddrPort(said)
		if err == nil {
			ip, port = at.Addr(), at.Port()
		} else if ip, err = netip.ParseAddr(said); err != nil {
			return "", api.Errorf(api.Invalid, "address %q: want IP or IP:PORT of this host", said)
		}
	}
	if !ip.IsValid() {
		var err error
		if ip, err = ownAddress(); err != nil {
			return "", err
		}
	}
	if ip.IsUnspecified() || ip.IsMulticast() || port == 0 || port > 65535-clientOffset {
		return "", api.Errorf(api.Invalid, "address %q: want one address of this host, and a port of 1 to %d", said, 65535-clientOffset)
	}
	address := netip.AddrPortFrom(ip.Unmap(), port).String()
	return address, portsFree(address)
}

// ownAddress is where others most likely reach this host.
func ownAddress() (netip.Addr, error) {
	for _, out := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // nothing is sent: only the route is looked up
		conn, err := net.Dial("udp", out)
		if err != nil {
			continue
		}
		ip := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
		conn.Close()
		return ip.Unmap(), nil
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, api.Errorf(api.Internal, "look up this host's addresses: %w", err)
	}
	var found []netip.Addr
	for _, a := range list {
		prefix, err := netip.ParsePrefix(a.String())
		if err == nil && prefix.Addr().IsGlobalUnicast() {
			found = append(found, prefix.Addr().Unmap())
		}
	}
	if len(found) != 1 {
		return netip.Addr{}, api.Errorf(api.Precondition, "this host has no default route and %d addresses: say with --address IP where other hosts reach it", len(found))
	}
	return found[0], nil
}

// portsFree says whether this host can listen at the address, and at etcd's two beside it.
func portsFree(address string) error {
	for offset := range uint16(clientOffset + 1) {
		at := sibling(address, offset)
		l, err := net.Listen("tcp", at)
		switch {
		case err == nil:
			l.Close()
		case errors.Is(err, syscall.EADDRINUSE):
			return api.Errorf(api.Precondition, "address %s: something else listens there: choose other ports with --address IP:PORT, of which the two after it are used too", at)
		default:
			return api.Errorf(api.Precondition, "address %s: %w: choose another address of this host with --address IP[:PORT]", at, err)
		}
	}
	return nil
}

// linkMTU is the MTU of the link that an address is on; 0 when there is none.
func linkMTU(address string) int {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0
	}
	links, err := net.Interfaces()
	if err != nil {
		return 0
	}
	for _, link := range links {
		addresses, err := link.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Unmap() == at.Addr() {
				return link.MTU
			}
		}
	}
	return 0
}
