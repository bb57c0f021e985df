//go:build integration

package network

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"polder/api"
)

func (hs *hosts) reach(from ve, to string) {
	hs.Helper()
	l := hs.of[to]
	wantIn(hs.T, from.run("ping", "-4", "-c3", "-i0.01", "-W1", "-M", "do", "-s", fmt.Sprint(hs.cfg.MTU-28), l.IPv4.Addr().String()), " 0% packet loss")
	wantIn(hs.T, from.run("ping", "-6", "-c3", "-i0.01", "-W1", "-M", "do", "-s", fmt.Sprint(hs.cfg.MTU-48), l.IPv6.Addr().String()), " 0% packet loss")
}

// A fifth of the packets between hosts is lost: what is left comes through, and a move is followed all the same.
func TestLossBetweenHosts(t *testing.T) {
	hs := newHosts(t, 3, false)
	hs.all[0].container("a")
	for _, h := range hs.all {
		h.port()
	}
	hs.join()
	for _, h := range hs.all {
		h.run("nft", "add table ip loss; add chain ip loss in { type filter hook prerouting priority -300; }; add rule ip loss in udp dport 4789 numgen random mod 100 < 20 drop")
	}
	hs.all[1].half("a", true)
	p := hs.all[2].probe("a")
	p.answered(t, 100)
	took := hs.cutOver("a", hs.all[0], hs.all[1])
	p.answered(t, 100)
	seen := p.Stop()
	t.Logf("cut over in %v, observed %+v", took, seen)
	if share := float64(seen.Answered) / float64(seen.Sent); share < 0.4 || share > 0.85 {
		t.Errorf("%d of %d answered", seen.Answered, seen.Sent)
	}
	if seen.Longest > 200*time.Millisecond {
		t.Errorf("observed %v", seen.Longest)
	}
}

func TestUnderlayAddressChanges(t *testing.T) {
	hs := newHosts(t, 3, false)
	ves := map[string]ve{}
	for i, name := range []string{"a", "b", "c"} {
		ves[name] = hs.all[i].container(name)
	}
	hs.join()
	hs.reach(ves["a"], "b")
	h := hs.all[1]
	h.run("ip", "addr", "del", h.under.Self.String()+"/24", "dev", "eth0")
	h.run("ip", "addr", "add", "192.0.2.22/24", "dev", "eth0")
	h.under.Self = netip.MustParseAddr("192.0.2.22")
	hs.join()
	for from, v := range ves {
		for to := range ves {
			if from != to {
				hs.reach(v, to)
			}
		}
	}
	// To the other family, and back.
	for _, six := range []bool{true, false} {
		for i, h := range hs.all {
			h.under.Self = netip.MustParseAddr([]string{"192.0.2.1", "192.0.2.22", "192.0.2.3"}[i])
			if six {
				h.under.Self = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))
			}
		}
		hs.join()
		hs.reach(ves["a"], "b")
		hs.reach(ves["c"], "a")
	}
}

// A remote that can't be set keeps no other one out.
func TestHostsOfTwoFamilies(t *testing.T) {
	hs := newHosts(t, 3, false)
	a := hs.all[0].container("a")
	hs.all[1].container("b")
	hs.all[2].container("c")
	hs.all[2].under.Self = netip.MustParseAddr("2001:db8::3")
	h := hs.all[0]
	hs.all[1].do(func() {
		_ = hs.all[1].fabric.SetOverlay(t.Context(), hs.cfg, hs.all[1].under, hs.all[1].remotes())
	})
	h.do(func() {
		err := h.fabric.SetOverlay(t.Context(), hs.cfg, h.under, h.remotes())
		if api.KindOf(err) != api.Precondition {
			t.Errorf("got %v", err)
		}
	})
	hs.reach(a, "b")
}

func TestPortRemoved(t *testing.T) {
	hs := newHosts(t, 2, false)
	hs.all[0].container("a")
	b := hs.all[1].container("b")
	c := hs.all[0].container("c")
	hs.join()
	hs.all[0].run("ip", "link", "del", HostName("uuid of a", 0))
	hs.join()
	hs.reach(c, "b")
	hs.reach(b, "c")
	hs.all[0].do(func() {
		if err := hs.all[0].fabric.Gate(t.Context(), hs.nic("a"), true); api.KindOf(err) != api.NotFound {
			t.Errorf("got %v", err)
		}
	})
	// It comes again elsewhere.
	hs.all[1].half("a", false)
	hs.at["a"] = hs.all[1]
	hs.join()
	hs.reach(c, "a")
}

// A VE whose gate is open here is here, also for a caller that has read the records before it came.
func TestOpenGateOutweighsRecords(t *testing.T) {
	hs := newHosts(t, 2, false)
	h1, h2 := hs.all[0], hs.all[1]
	h1.container("a")
	w := h2.container("w")
	hs.join()
	old := h2.remotes()
	h2.half("a", true)
	hs.cutOver("a", h1, h2)
	h2.do(func() {
		if err := h2.fabric.SetOverlay(t.Context(), hs.cfg, h2.under, old); err != nil {
			t.Error(err)
		}
		if err := h2.fabric.SetRemote(t.Context(), hs.cfg, h2.under, old[0]); err != nil {
			t.Error(err)
		}
	})
	hs.reach(w, "a")
	// The gate shut again, it is where the records say.
	h2.gate("a", false)
	h1.gate("a", true)
	hs.at["a"] = h1
	hs.join()
	hs.reach(w, "a")
}

func TestSetRemoteNeedsAnOverlay(t *testing.T) {
	hs := newHosts(t, 1, false)
	h := hs.all[0]
	l := hs.lease("a")
	h.do(func() {
		err := h.fabric.SetRemote(t.Context(), hs.cfg, h.under, Remote{Lease: l, Host: netip.MustParseAddr("192.0.2.9")})
		if api.KindOf(err) != api.Precondition {
			t.Errorf("got %v", err)
		}
		if err := h.fabric.DropRemote(t.Context(), hs.cfg, l); err != nil {
			t.Errorf("forget what is not known: %v", err)
		}
		if err := NewFabric(h.dir, h.fabric.log).SetOverlay(t.Context(), hs.cfg, h.under, nil); api.KindOf(err) != api.Precondition {
			t.Errorf("network not up: got %v", err)
		}
	})
}

// Another program's links are not taken for ours.
func TestOverlayLeavesOthersAlone(t *testing.T) {
	hs := newHosts(t, 1, false)
	h := hs.all[0]
	h.run("ip", "link", "add", "polder0-x", "type", "bridge")
	h.do(func() {
		if err := h.fabric.SetOverlay(t.Context(), hs.cfg, h.under, nil); api.KindOf(err) != api.Conflict {
			t.Errorf("got %v", err)
		}
		if err := h.fabric.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	h.run("ip", "link", "del", "polder0-x")
	h.restart()
	h.run("ip", "link", "add", "other0", "type", "vxlan", "id", fmt.Sprint(hs.cfg.vni()), "dstport", "4789", "local", "192.0.2.1")
	h.do(func() {
		if err := h.fabric.SetOverlay(t.Context(), hs.cfg, h.under, nil); api.KindOf(err) != api.Conflict {
			t.Errorf("got %v", err)
		}
	})
	h.run("ip", "link", "del", "other0")
}

// A network made before there was room left between hosts still works: VEs learn that packets to another host must be smaller.
func TestPacketsThatDoNotFit(t *testing.T) {
	hs := newHosts(t, 2, false)
	hs.cfg.MTU = 1500
	for _, h := range hs.all {
		h.do(func() { _ = h.fabric.Down(t.Context()) })
		h.restart()
	}
	a := hs.all[0].container("a")
	hs.all[1].container("b")
	hs.join()
	for _, to := range []netip.Addr{hs.of["b"].IPv4.Addr(), hs.of["b"].IPv6.Addr()} {
		out, _ := a.exec("ping", "-c2", "-i0.01", "-W1", "-M", "do", "-s", "1452", to.String())
		wantIn(t, out, "mtu")
		_, _ = a.exec("ping", "-c1", "-W1", "-M", "want", "-s", "1452", to.String())
		wantIn(t, a.run("ping", "-c3", "-i0.01", "-W1", "-M", "want", "-s", "1452", to.String()), " 0% packet loss")
	}
}

// Hosts reach each other through firewalls like docker's or ufw's, joined before or after these were set up.
func TestHostsBehindADropPolicy(t *testing.T) {
	hs := newHosts(t, 2, false)
	for _, h := range hs.all {
		h.run("sh", "-ec", "iptables -P INPUT DROP; iptables -P FORWARD DROP; ip6tables -P INPUT DROP; iptables -A INPUT -i lo -j ACCEPT")
	}
	for _, h := range hs.all {
		h.restart()
	}
	a := hs.all[0].container("a")
	hs.all[1].container("b")
	hs.join()
	hs.reach(a, "b")
	for _, h := range hs.all {
		h.restart()
	}
	hs.join()
	hs.reach(a, "b")
}
