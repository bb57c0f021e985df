package network

import (
	"net"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"polder/api"
)

// newKey makes a host's keys.
func newKey(t *testing.T) (private, public string) {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.String(), key.PublicKey().String()
}

// cryptHosts are the underlays of n hosts that know each other's keys.
func cryptHosts(t *testing.T, n int) []Underlay {
	t.Helper()
	hosts := make([]Underlay, n)
	public := map[netip.Addr]string{}
	for i := range hosts {
		self := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		key, pub := newKey(t)
		public[self] = pub
		hosts[i] = Underlay{Self: self, MTU: 1500, Crypt: &Crypt{Key: key}}
	}
	for i := range hosts {
		hosts[i].Crypt.Peers = map[netip.Addr]string{}
		for addr, pub := range public {
			if addr != hosts[i].Self {
				hosts[i].Crypt.Peers[addr] = pub
			}
		}
	}
	return hosts
}

// Hosts find each other's addresses inside by the keys alone.
func TestInsideAddresses(t *testing.T) {
	cfg, hosts := testConfig(), cryptHosts(t, 3)
	own := map[netip.Addr]netip.Addr{}
	for _, u := range hosts {
		in, err := cfg.inside(u)
		if err != nil || !cfg.cryptPrefix().Contains(in.Self) || in.MTU != 1420 {
			t.Fatalf("%+v, %v", in, err)
		}
		own[u.Self] = in.Self
	}
	for _, u := range hosts {
		for _, other := range hosts {
			if other.Self == u.Self {
				continue
			}
			if got, err := cfg.insideOf(u, other.Self); err != nil || got != own[other.Self] {
				t.Errorf("%s at %s: got %s, %v; want %s", other.Self, u.Self, got, err, own[other.Self])
			}
		}
	}
	if _, err := cfg.insideOf(hosts[0], netip.MustParseAddr("192.0.2.9")); api.KindOf(err) != api.Precondition {
		t.Errorf("a host without key: got %v", err)
	}
	hosts[0].Crypt.Key = "no key"
	if _, err := cfg.inside(hosts[0]); api.KindOf(err) != api.Invalid {
		t.Errorf("a bad key: got %v", err)
	}
	if cfg.MTU = DefaultMTU; cfg.checkUnderlay(Underlay{Self: own[hosts[1].Self], MTU: 1420}) != nil {
		t.Error("the default mtu does not fit when encrypted")
	}
}

func TestCryptConfig(t *testing.T) {
	cfg, hosts := testConfig(), cryptHosts(t, 3)
	device := &wgtypes.Device{}
	// apply is what the kernel does.
	apply := func(c wgtypes.Config) (changed int) {
		if c.PrivateKey != nil {
			device.PrivateKey = *c.PrivateKey
			changed++
		}
		if c.ListenPort != nil {
			device.ListenPort = *c.ListenPort
			changed++
		}
		for _, p := range c.Peers {
			changed++
			kept := device.Peers[:0]
			for _, old := range device.Peers {
				if old.PublicKey != p.PublicKey {
					kept = append(kept, old)
				}
			}
			if device.Peers = kept; !p.Remove {
				device.Peers = append(device.Peers, wgtypes.Peer{
					PublicKey: p.PublicKey, Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs, PersistentKeepaliveInterval: *p.PersistentKeepaliveInterval,
				})
			}
		}
		return changed
	}
	set := func(what string, u Underlay, want int) {
		t.Helper()
		c, err := cfg.cryptConfig(u, device)
		if err != nil {
			t.Fatal(err)
		}
		if got := apply(c); got != want {
			t.Errorf("%s: %d changes, want %d: %+v", what, got, want, c)
		}
		if len(device.Peers) != len(u.Crypt.Peers) {
			t.Errorf("%s: %d peers, want %d", what, len(device.Peers), len(u.Crypt.Peers))
		}
	}
	set("new", hosts[0], 4)
	set("again", hosts[0], 0)
	device.Peers[0].Endpoint = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 77), Port: cryptPort}
	set("a peer's address changed", hosts[0], 1)
	delete(hosts[0].Crypt.Peers, hosts[2].Self)
	set("a host less", hosts[0], 1)
	hosts[0].Crypt.Peers[hosts[1].Self] = hosts[0].Crypt.Peers[hosts[1].Self][:10]
	if _, err := cfg.cryptConfig(hosts[0], device); api.KindOf(err) != api.Invalid {
		t.Errorf("a bad key: got %v", err)
	}
}

func TestCryptRules(t *testing.T) {
	golden(t, "crypt.nft", cryptRules(testConfig()))
}
