package network

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"polder/api"
)

func testConfig() Config {
	return Config{
		Name: "default", Bridge: "polder0", Domain: DefaultDomain, NAT: true, MTU: 1500,
		IPv4: netip.MustParsePrefix("10.87.0.1/24"), IPv6: netip.MustParsePrefix("fd12:3456:789a:bcde::1/64"),
	}
}

func drawConfig(t *rapid.T) Config {
	cfg := testConfig()
	length := rapid.IntRange(maxBits4-3, maxBits4).Draw(t, "prefix length")
	base := netip.PrefixFrom(addr4(10<<24|rapid.Uint32Range(0, 1<<24-1).Draw(t, "network")), length).Masked()
	host := rapid.Uint32Range(1, 1<<(32-length)-2).Draw(t, "gateway")
	cfg.IPv4 = netip.PrefixFrom(addr4(number4(base.Addr())+host), length)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A network is filled to the last address: every lease is unique, inside, stable and none of the special addresses.
func TestAllocateFillsTheNetwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := drawConfig(t)
		size := 1<<(32-cfg.IPv4.Bits()) - 3 // network, broadcast, gateway
		taken := map[netip.Addr]bool{}
		macs := map[string]bool{}
		seed := rapid.String().Draw(t, "seed")
		for n := range size {
			id := fmt.Sprintf("%s-%d", seed, n)
			l, err := Allocate(cfg, taken, id)
			if err != nil {
				t.Fatalf("lease %d of %d: %v", n+1, size, err)
			}
			if again, _ := Allocate(cfg, taken, id); again != l {
				t.Fatalf("not stable: %v, then %v", l, again)
			}
			checkLease(t, cfg, l)
			if taken[l.IPv4.Addr()] || taken[l.IPv6.Addr()] || macs[l.MAC] {
				t.Fatalf("lease %v is not unique", l)
			}
			taken[l.IPv4.Addr()], taken[l.IPv6.Addr()], macs[l.MAC] = true, true, true
		}
		_, err := Allocate(cfg, taken, "one more")
		if api.KindOf(err) != api.Exhausted || !strings.Contains(err.Error(), fmt.Sprintf("all %d addresses", size)) {
			t.Fatalf("full network: %v", err)
		}
	})
}

func checkLease(t *rapid.T, cfg Config, l Lease) {
	v4, v6 := l.IPv4.Addr(), l.IPv6.Addr()
	switch {
	case l.IPv4.Masked() != cfg.IPv4.Masked() || l.IPv6.Masked() != cfg.IPv6.Masked():
		t.Fatalf("lease %v is outside %s, %s", l, cfg.IPv4, cfg.IPv6)
	case v4 == cfg.IPv4.Addr(), v4 == cfg.IPv4.Masked().Addr(), !cfg.IPv4.Contains(v4.Next()), v6 == cfg.IPv6.Addr(), v6 == cfg.IPv6.Masked().Addr():
		t.Fatalf("lease %v is a special address of %s, %s", l, cfg.IPv4, cfg.IPv6)
	}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil || len(mac) != 6 || mac[0] != 2 {
		t.Fatalf("mac %s: want a locally administered unicast one", l.MAC)
	}
	if eui64(cfg.IPv6, mac) != v6 {
		t.Fatalf("lease %v: the IPv6 address is not the MAC's", l)
	}
}

func TestAllocateProbesMAC(t *testing.T) {
	cfg := testConfig()
	first, err := Allocate(cfg, nil, "id")
	if err != nil {
		t.Fatal(err)
	}
	second, err := Allocate(cfg, map[netip.Addr]bool{first.IPv6.Addr(): true}, "id")
	if err != nil || second.MAC == first.MAC || second.IPv6 == first.IPv6 || second.IPv4 != first.IPv4 {
		t.Errorf("got %v after %v, %v", second, first, err)
	}
}

func TestEUI64(t *testing.T) {
	mac := net.HardwareAddr{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}
	if got := eui64(netip.MustParsePrefix("fd00:1::1/64"), mac).String(); got != "fd00:1::11:22ff:fe33:4455" {
		t.Errorf("got %s", got)
	}
}

func TestHostName(t *testing.T) {
	seen := map[string]bool{}
	for n := range 1000 {
		for index := range 3 {
			name := HostName(fmt.Sprintf("2f1e9c1a-0000-4000-8000-%012d", n), index)
			if len(name) > 15 || seen[name] || !linkForm.MatchString(name) {
				t.Fatalf("%q: too long, not unique or not a link's name", name)
			}
			seen[name] = true
		}
	}
}
