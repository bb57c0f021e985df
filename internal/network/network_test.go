package network

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"polder/api"
)

func TestValidate(t *testing.T) {
	if err := testConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"name":            {func(c *Config) { c.Name = "No" }, "network name"},
		"bridge empty":    {func(c *Config) { c.Bridge = "" }, "bridge name"},
		"bridge too long": {func(c *Config) { c.Bridge = "polder0123456789" }, "bridge name"},
		"bridge slash":    {func(c *Config) { c.Bridge = "a/b" }, "bridge name"},
		"bridge newline":  {func(c *Config) { c.Bridge = "a\nb" }, "bridge name"},
		"ipv4 missing":    {func(c *Config) { c.IPv4 = netip.Prefix{} }, "ipv4"},
		"ipv4 public":     {func(c *Config) { c.IPv4 = p("8.8.8.1/24") }, "private"},
		"ipv4 is v6":      {func(c *Config) { c.IPv4 = p("fd00::1/24") }, "ipv4"},
		"ipv4 too small":  {func(c *Config) { c.IPv4 = p("10.0.0.1/30") }, "/16 to /29"},
		"ipv4 too large":  {func(c *Config) { c.IPv4 = p("10.0.0.1/8") }, "/16 to /29"},
		"ipv4 network":    {func(c *Config) { c.IPv4 = p("10.0.0.0/24") }, "gateway"},
		"ipv4 broadcast":  {func(c *Config) { c.IPv4 = p("10.0.0.255/24") }, "gateway"},
		"ipv6 missing":    {func(c *Config) { c.IPv6 = netip.Prefix{} }, "ipv6"},
		"ipv6 /56":        {func(c *Config) { c.IPv6 = p("fd00::1/56") }, "/64"},
		"ipv6 mapped":     {func(c *Config) { c.IPv6 = p("::ffff:10.0.0.1/64") }, "ipv6"},
		"ipv6 link-local": {func(c *Config) { c.IPv6 = p("fe80::1/64") }, "ipv6"},
		"ipv6 network":    {func(c *Config) { c.IPv6 = p("fd00::/64") }, "anycast"},
		"domain empty":    {func(c *Config) { c.Domain = "" }, "domain"},
		"domain newline":  {func(c *Config) { c.Domain = "a\nuser=root" }, "domain"},
		"domain dots":     {func(c *Config) { c.Domain = "a..b" }, "domain"},
		"mtu":             {func(c *Config) { c.MTU = 1000 }, "mtu"},
	} {
		cfg := testConfig()
		tc.change(&cfg)
		if err := cfg.Validate(); api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, tc.want)
		}
	}
}

func TestDefaultConfig(t *testing.T) {
	p := netip.MustParsePrefix
	for want, taken := range map[string][]netip.Prefix{
		"10.87.0.1/20":   {p("192.168.1.0/24"), p("10.0.0.0/16")},
		"10.87.16.1/20":  {p("10.87.0.0/23")},
		"10.88.0.1/20":   {p("10.87.0.0/16")},
		"10.0.0.1/20":    {p("10.64.0.0/10"), p("10.128.0.0/9")},
		"10.87.32.1/20":  {p("10.87.0.77/32"), p("10.87.31.255/32")},
		"10.86.0.1/20":   {p("10.87.0.0/16"), p("10.88.0.0/13"), p("10.96.0.0/11"), p("10.128.0.0/9"), p("10.0.0.0/10"), p("10.64.0.0/12"), p("10.80.0.0/14"), p("10.84.0.0/15")},
		"10.87.240.1/20": {p("10.87.0.0/17"), p("10.87.128.0/18"), p("10.87.192.0/19"), p("10.87.224.0/20")},
	} {
		cfg, err := DefaultConfig(taken, "seed")
		if want == "" {
			if api.KindOf(err) != api.Exhausted {
				t.Errorf("taken %v: got %v", taken, err)
			}
			continue
		}
		if err != nil || cfg.IPv4.String() != want {
			t.Errorf("taken %v: got %v, %v; want %s", taken, cfg.IPv4, err, want)
		}
	}
}

func TestDefaultConfigIsValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg, err := DefaultConfig(nil, rapid.String().Draw(t, "seed"))
		if err != nil {
			t.Fatal(err)
		}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
	})
	a, _ := DefaultConfig(nil, "a")
	b, _ := DefaultConfig(nil, "b")
	if a.IPv6 == b.IPv6 {
		t.Errorf("the same ULA prefix %s for two seeds", a.IPv6)
	}
}
