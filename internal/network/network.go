// Package network makes the L2 segment that VEs are attached to: a bridge with the host's gateway addresses, NAT, DHCP,
// router advertisements and DNS, and the VEs' own ends (veth, tap).
//
// The parts are kept apart: Config and Allocate are pure; a bridge is made by netlink; nftables rules are text for nft;
// DHCP and DNS are a dnsmasq process; Fabric puts them together and is the model.Plug. The package knows no store: which
// leases there are is the caller's business. It does not filter traffic.
//
// dnsmasq is not a child of the daemon. It runs on when the daemon dies, and the next Fabric.Up finds it by its pid file
// and its command line, so nothing is lost but the time of a few system calls.
//
// A Fabric is safe for concurrent use.
package network

import (
	"crypto/sha256"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"polder/api"
)

// Config says what a network is. It is kept in the store and is the same on all hosts.
type Config struct {
	Name   string `json:"name"`
	Bridge string `json:"bridge"` // name of the bridge on the host, at most 13 bytes: other links' names are made from it
	// IPv4 and IPv6 are the gateway's (the host's own) addresses with the network's prefix length.
	IPv4   netip.Prefix `json:"ipv4"`
	IPv6   netip.Prefix `json:"ipv6"`
	Domain string       `json:"domain"` // VEs are NAME.Domain
	NAT    bool         `json:"nat"`    // what VEs send beyond the network leaves under the host's address
	MTU    int          `json:"mtu"`
	// Encrypted: what hosts send each other for VEs is; see Underlay.Crypt.
	Encrypted bool `json:"encrypted,omitempty"`
}

// DefaultDomain is under the top-level domain that ICANN keeps for private use.
const DefaultDomain = "polder.internal"

// DefaultMTU fits between hosts in every way there is: VXLAN over IPv6 (70 bytes) in WireGuard over IPv6 (80), on links of 1500. So
// a network's MTU, which VEs know from their start, need not change when a host joins, or when what hosts send each other is
// to be encrypted.
const DefaultMTU = 1500 - 70 - 80

// Limits of a network's size. IPv6 is always /64: the VEs' addresses end in the EUI-64 of their MAC.
const (
	minBits4 = 16
	maxBits4 = 29
	bits6    = 64
	minMTU   = 1280 // IPv6's least
	maxMTU   = 65535
	maxLink  = 13 // bytes of a bridge's name; the kernel has 15 for a link's
	maxLabel = 63 // bytes between two dots of a domain
)

var (
	linkForm   = regexp.MustCompile(`^[a-z][a-z0-9_.-]*$`)
	domainForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

// Validate says whether a network can be made from the config on any host. Everything that ends in a rendered file is
// checked here.
func (c Config) Validate() error {
	if err := api.CheckName("network", c.Name); err != nil {
		return err
	}
	switch {
	case len(c.Bridge) > maxLink || !linkForm.MatchString(c.Bridge):
		return api.Errorf(api.Invalid, "network %q: bridge name %q: want 1 to %d lower-case letters, digits or ._- starting with a letter", c.Name, c.Bridge, maxLink)
	case !c.IPv4.Addr().Is4() || !c.IPv4.Addr().IsPrivate() || c.IPv4.Bits() < minBits4 || c.IPv4.Bits() > maxBits4:
		return api.Errorf(api.Invalid, "network %q: ipv4 %q: want a private gateway address with a prefix of /%d to /%d, such as 10.87.0.1/24", c.Name, c.IPv4, minBits4, maxBits4)
	case c.IPv4.Addr() == c.IPv4.Masked().Addr() || c.IPv4.Addr() == lastAddr(c.IPv4):
		return api.Errorf(api.Invalid, "network %q: ipv4 %q: the gateway can be neither the network's nor the broadcast address", c.Name, c.IPv4)
	case !c.IPv6.Addr().Is6() || c.IPv6.Addr().Is4In6() || c.IPv6.Addr().Zone() != "" || !c.IPv6.Addr().IsGlobalUnicast() || c.IPv6.Bits() != bits6:
		return api.Errorf(api.Invalid, "network %q: ipv6 %q: want a gateway address with prefix /%d, such as fd12:3456:789a:1::1/64", c.Name, c.IPv6, bits6)
	case c.IPv6.Addr() == c.IPv6.Masked().Addr():
		return api.Errorf(api.Invalid, "network %q: ipv6 %q: the gateway can't be the network's own address (the routers' anycast)", c.Name, c.IPv6)
	case len(c.Domain) > 180 || !domainForm.MatchString(c.Domain) || slices.ContainsFunc(strings.Split(c.Domain, "."), func(label string) bool { return len(label) > maxLabel }):
		return api.Errorf(api.Invalid, "network %q: domain %q: want lower-case labels joined by dots, such as %s", c.Name, c.Domain, DefaultDomain)
	case c.MTU < minMTU || c.MTU > maxMTU:
		return api.Errorf(api.Invalid, "network %q: mtu %d: want %d to %d", c.Name, c.MTU, minMTU, maxMTU)
	}
	return nil
}

// DefaultConfig is a network for a host on which the prefixes in taken are in use (see Taken). The IPv4 prefix is the
// first private /20 (room for some four thousand VEs) that overlaps none of them, from 10.87.0.0/20 on; the IPv6 prefix is a ULA drawn from seed
// (RFC 4193), which should be random or the cluster's identity.
func DefaultConfig(taken []netip.Prefix, seed string) (Config, error) {
	cfg := Config{Name: "default", Bridge: "polder0", Domain: DefaultDomain, NAT: true, MTU: DefaultMTU}
	for n := range 1 << 12 {
		// 10.87.0.0, 10.87.16.0, …, 10.88.0.0, …, 10.255.240.0, 10.0.0.0, …
		third := 87<<8 + n<<4
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(third >> 8), byte(third), 1}), 20)
		if overlapping(p, taken) == nil {
			cfg.IPv4 = p
			break
		}
	}
	if !cfg.IPv4.IsValid() {
		return Config{}, api.Errorf(api.Exhausted, "network %q: no /20 of 10.0.0.0/8 is free on this host: give the network a prefix", cfg.Name)
	}
	sum := sha256.Sum256([]byte("polder network " + seed))
	ula := [16]byte{0: 0xfd, 15: 1}
	copy(ula[1:8], sum[:])
	cfg.IPv6 = netip.PrefixFrom(netip.AddrFrom16(ula), bits6)
	return cfg, nil
}

// overlapping finds a prefix that shares addresses with p.
func overlapping(p netip.Prefix, taken []netip.Prefix) *netip.Prefix {
	for i := range taken {
		if taken[i].Overlaps(p) {
			return &taken[i]
		}
	}
	return nil
}

// lastAddr is the last address of an IPv4 prefix: its broadcast address.
func lastAddr(p netip.Prefix) netip.Addr {
	return addr4(number4(p.Masked().Addr()) + 1<<(32-p.Bits()) - 1)
}
