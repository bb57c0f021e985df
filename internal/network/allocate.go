package network

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"

	"polder/api"
)

// Lease is what a VE has on a network for as long as it exists.
type Lease struct {
	Name string       `json:"name"` // the VE's, and so its host name
	MAC  string       `json:"mac"`
	IPv4 netip.Prefix `json:"ipv4"` // the VE's address with the network's prefix length
	IPv6 netip.Prefix `json:"ipv6"`
}

// macAttempts bounds the search for a MAC that is not in use: two of 2⁴⁰ are equal next to never.
const macAttempts = 16

// Allocate chooses addresses for the VE with the UUID id, none of which is in taken. It is a pure function: the same VE
// gets the same addresses again while they are free. The MAC is locally administered and drawn from the UUID; the IPv6
// address ends in the MAC's EUI-64, so that it is the same by DHCPv6 and by autoconfiguration; the IPv4 address is the
// first free one after a place drawn from the UUID, so that an address is not soon used again. The caller fills in Name.
func Allocate(cfg Config, taken map[netip.Addr]bool, id string) (Lease, error) {
	ipv4, err := allocate4(cfg, taken, id)
	if err != nil {
		return Lease{}, err
	}
	for attempt := range byte(macAttempts) {
		mac := macOf(id, attempt)
		ipv6 := netip.PrefixFrom(eui64(cfg.IPv6, mac), cfg.IPv6.Bits())
		if taken[ipv6.Addr()] || ipv6.Addr() == cfg.IPv6.Addr() || mac.String() == cfg.bridgeMAC().String() {
			continue
		}
		return Lease{MAC: mac.String(), IPv4: ipv4, IPv6: ipv6}, nil
	}
	return Lease{}, api.Errorf(api.Exhausted, "network %q: no free MAC address for ve %s", cfg.Name, id)
}

func allocate4(cfg Config, taken map[netip.Addr]bool, id string) (netip.Prefix, error) {
	// Without the network's and the broadcast address.
	first := number4(cfg.IPv4.Masked().Addr()) + 1
	count := uint32(1)<<(32-cfg.IPv4.Bits()) - 2
	start := binary.BigEndian.Uint32(digest("ipv4", id)) % count
	for n := range count {
		addr := addr4(first + (start+n)%count)
		if addr != cfg.IPv4.Addr() && !taken[addr] {
			return netip.PrefixFrom(addr, cfg.IPv4.Bits()), nil
		}
	}
	return netip.Prefix{}, api.Errorf(api.Exhausted, "network %q: all %d addresses of %s are taken: delete VEs that are no longer needed", cfg.Name, count-1, cfg.IPv4.Masked())
}

// HostName is the name of the host's end of a VE's interface (veth or tap): at most 15 bytes, the same every time.
func HostName(veID string, index int) string {
	return "ve" + hex.EncodeToString(digest("link", veID)[:5]) + "e" + string("0123456789abcdef"[index&15])
}

// innerIndex is the interface index of a container's end of a veth. A restored container must find its interface under the
// index it had, so the index follows from the MAC; it is above what a kernel counts up to by itself.
func innerIndex(mac net.HardwareAddr) int {
	return 1<<24 | int(mac[3])<<16 | int(mac[4])<<8 | int(mac[5])
}

// bridgeMAC is the same for a network on all hosts, and tells a bridge of ours from others.
func (c Config) bridgeMAC() net.HardwareAddr {
	return macOf("bridge "+c.Name+" "+c.IPv4.String()+" "+c.IPv6.String(), 0)
}

// macOf draws a locally administered unicast MAC.
func macOf(id string, attempt byte) net.HardwareAddr {
	return append(net.HardwareAddr{0x02}, digest("mac"+string('0'+rune(attempt)), id)[:5]...)
}

// eui64 is the address that a host with this MAC gives itself in a /64 (RFC 4291, appendix A).
func eui64(prefix netip.Prefix, mac net.HardwareAddr) netip.Addr {
	a := prefix.Masked().Addr().As16()
	copy(a[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(a)
}

func digest(purpose, id string) []byte {
	sum := sha256.Sum256([]byte(purpose + "\x00" + id))
	return sum[:]
}

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addr4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}
