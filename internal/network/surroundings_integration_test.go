//go:build integration

package network

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/api"
)

func TestNATLeavesUnderTheHostsAddress(t *testing.T) {
	w := newWorld(t)
	outside := w.process()
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(outside.pid))
	t.Cleanup(func() { run(t, "ip", "link", "del", "up0") })
	run(t, "ip", "link", "set", "up0", "up")
	run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
	outside.run("ip", "link", "set", "eth0", "up")
	outside.run("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	outside.run("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	w.up()
	a := w.container("a")
	// The outside has no route back to the VE: an answer proves the translation.
	a.run("ping", "-4", "-c1", "-W3", "192.0.2.2")
	a.run("ping", "-6", "-c1", "-W3", "2001:db8::2")
}

// A firewall like docker's or ufw's, with drop policies in the tables of iptables.
func TestVEsPassADropPolicy(t *testing.T) {
	w := newWorld(t)
	outside := w.process()
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(outside.pid))
	t.Cleanup(func() { run(t, "ip", "link", "del", "up0") })
	run(t, "sh", "-ec", "ip link set up0 up; ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad")
	outside.run("sh", "-ec", "ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad")
	for _, tool := range []string{"iptables", "ip6tables"} {
		run(t, "sh", "-ec", tool+" -P FORWARD DROP; "+tool+" -P INPUT DROP")
		t.Cleanup(func() { run(t, "sh", "-ec", tool+" -P FORWARD ACCEPT; "+tool+" -P INPUT ACCEPT") })
	}
	run(t, "iptables", "-A", "INPUT", "-i", "lo", "-j", "ACCEPT") // the host may talk to itself
	run(t, "ip6tables", "-A", "INPUT", "-i", "up0", "-p", "ipv6-icmp", "-j", "ACCEPT")
	before := run(t, "sh", "-c", "iptables -S; ip6tables -S")
	for range 2 {
		w.up()
	}
	a := w.container("a")
	w.container("b")
	a.run("ping", "-4", "-c1", "-W3", "b")
	a.run("ping", "-4", "-c1", "-W3", "192.0.2.2")
	a.run("ping", "-6", "-c1", "-W3", "2001:db8::2")
	a.run("ping", "-6", "-c1", "-W3", w.cfg.IPv6.Addr().String())
	outside.run("ip", "route", "add", w.cfg.IPv4.Masked().String(), "via", "192.0.2.1")
	if out, err := outside.exec("ping", "-c1", "-W1", w.leases[0].IPv4.Addr().String()); err == nil {
		t.Errorf("the drop policy is gone for those outside: %s", out)
	}
	if out := run(t, "iptables", "-S", "FORWARD"); strings.Count(out, "POLDER") != 1 {
		t.Errorf("want one jump: %s", out)
	}
	if err := w.fabric.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := run(t, "sh", "-c", "iptables -S; ip6tables -S"); after != before {
		t.Errorf("before %s\nafter %s", before, after)
	}
}

func TestConflictsAreNamed(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct {
		setup, cleanup string
		want           string
	}{
		"bridge's name is a veth's":       {"ip link add polder0 type veth", "ip link del polder0", `link "polder0" exists`},
		"bridge's name is another bridge": {"ip link add polder0 type bridge", "ip link del polder0", `link "polder0" exists`},
		"prefix is on another link":       {"ip link add d0 up type bridge; ip addr add 10.87.0.9/16 dev d0", "ip link del d0", "routes to d0"},
		"prefix is routed elsewhere":      {"ip link add d0 up type bridge; ip addr add 192.0.2.9/24 dev d0; ip route add 10.87.0.128/25 via 192.0.2.1", "ip link del d0", "10.87.0.128/25"},
		"ipv6 prefix is on another link":  {"ip link add d0 up type bridge; ip addr add fd12:3456:789a:bcde::9/64 dev d0", "ip link del d0", "routes to d0"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, "sh", "-ec", tc.setup)
			defer run(t, "sh", "-ec", tc.cleanup)
			err := w.fabric.Up(t.Context(), w.cfg)
			if api.KindOf(err) != api.Conflict || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
			taken, err := Taken()
			if err != nil {
				t.Fatal(err)
			}
			if overlapping(w.cfg.IPv4, taken) == nil && strings.Contains(name, "prefix is") && !strings.Contains(name, "ipv6") {
				t.Errorf("%v does not show it", taken)
			}
		})
	}
	// A wide route by a router is no obstacle.
	run(t, "sh", "-ec", "ip link add d0 up type bridge; ip addr add 192.0.2.9/24 dev d0; ip route add 10.0.0.0/8 via 192.0.2.1")
	defer run(t, "ip", "link", "del", "d0")
	w.up()
}

// Another resolver that has port 53 on every address: VEs are served all the same.
func TestResolverOnEveryAddress(t *testing.T) {
	w := newWorld(t)
	udp, err := net.ListenPacket("udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	w.up()
	a := w.container("a")
	w.container("b")
	a.run("ping", "-c1", "-W2", "b")
	wantIn(t, a.run("ping", "-6", "-c1", "-W2", "b"), w.leases[1].IPv6.Addr().String())
	pid := w.pid()
	_, _ = udp.Close(), tcp.Close()
	w.up()
	if w.pid() != pid {
		t.Error("dnsmasq was started again for nothing")
	}
	a.run("ping", "-c1", "-W2", "b")
}

func TestUnreadableDirectoryIsNamed(t *testing.T) {
	w := newWorld(t)
	if err := os.Chmod(filepath.Dir(w.dir), 0o700); err != nil {
		t.Fatal(err)
	}
	w.up()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := w.fabric.SetLeases(ctx, w.cfg, func(context.Context) ([]Lease, error) { return testLeases(t, "a"), nil })
	if api.KindOf(err) != api.Unavailable || !strings.Contains(err.Error(), "can't read") {
		t.Errorf("got %v", err)
	}
}

func TestBadLeasesAreRefused(t *testing.T) {
	w := newWorld(t)
	w.up()
	for _, l := range []Lease{{Name: "a\n1.2.3.4 b"}, {Name: "a", MAC: "x"}, {Name: "a", MAC: "02:00:00:00:00:01"}} {
		err := w.fabric.SetLeases(t.Context(), w.cfg, func(context.Context) ([]Lease, error) { return []Lease{l}, nil })
		if api.KindOf(err) != api.Invalid {
			t.Errorf("%+v: got %v", l, err)
		}
	}
}
