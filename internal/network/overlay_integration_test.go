//go:build integration

package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"polder/internal/model"
)

// hosts are several hosts, each a network namespace, joined by a bridge in the test's own: the underlay.
type hosts struct {
	*testing.T
	cfg   Config
	taken map[netip.Addr]bool
	all   []*host
	// where every VE is, as the store would have it.
	at map[string]*host
	of map[string]Lease
}

type host struct {
	hosts  *hosts
	name   string
	dir    string
	ns     netns.NsHandle
	pid    int
	under  Underlay
	fabric *Fabric
}

// newHosts brings up n hosts that are not joined yet. Their addresses are of IPv4, or IPv6.
func newHosts(t *testing.T, n int, six bool) *hosts {
	t.Helper()
	hs := &hosts{T: t, cfg: testConfig(), taken: map[netip.Addr]bool{}, at: map[string]*host{}, of: map[string]Lease{}}
	hs.cfg.MTU = DefaultMTU
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "link", "add", "under0", "type", "bridge", "mcast_snooping", "0")
	run(t, "ip", "link", "set", "under0", "up")
	t.Cleanup(func() { run(t, "ip", "link", "del", "under0") })
	for i := range n {
		hs.all = append(hs.all, hs.newHost(i+1, six))
	}
	return hs
}

func (hs *hosts) newHost(n int, six bool) *host {
	hs.Helper()
	h := &host{hosts: hs, name: fmt.Sprintf("h%d", n)}
	v4, v6 := netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", n)), netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", n))
	h.under = Underlay{Self: v4.Addr(), MTU: 1500}
	if six {
		h.under.Self = v6.Addr()
	}
	dir, err := os.MkdirTemp("/run", "polder-network-")
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		hs.Fatal(err)
	}
	hs.Cleanup(func() { _ = os.RemoveAll(dir) })
	h.dir = filepath.Join(dir, "network")
	w := &world{T: hs.T, dir: h.dir, cfg: hs.cfg}
	h.pid = w.process().pid
	if h.ns, err = netns.GetFromPid(h.pid); err != nil {
		hs.Fatal(err)
	}
	hs.Cleanup(func() { _ = h.ns.Close() })
	port := "under-" + h.name
	run(hs.T, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(h.pid))
	hs.Cleanup(func() { run(hs.T, "ip", "link", "del", port) })
	run(hs.T, "ip", "link", "set", port, "master", "under0", "up")
	h.do(func() {
		run(hs.T, "ip", "link", "set", "lo", "up")
		run(hs.T, "ip", "addr", "add", v4.String(), "dev", "eth0")
		run(hs.T, "ip", "addr", "add", v6.String(), "dev", "eth0", "nodad")
		run(hs.T, "ip", "link", "set", "eth0", "up")
	})
	h.restart()
	hs.Cleanup(func() {
		h.do(func() {
			if err := h.fabric.Down(context.Background()); err != nil {
				hs.Errorf("down: %v", err)
			}
		})
	})
	return h
}

// restart is what a daemon that was started again has.
func (h *host) restart() {
	h.hosts.Helper()
	h.fabric = NewFabric(h.dir, slog.New(slog.NewTextHandler(h.hosts.Output(), nil)))
	h.do(func() {
		if err := h.fabric.Up(h.hosts.Context(), h.hosts.cfg); err != nil {
			h.hosts.Fatal(err)
		}
	})
}

// do runs f on a thread in the host's namespace.
func (h *host) do(f func()) {
	h.hosts.Helper()
	done := make(chan struct{})
	ended := false
	go func() {
		defer close(done)
		defer enter(h.ns)()
		f()
		ended = true
	}()
	if <-done; !ended {
		h.hosts.FailNow()
	}
}

// enter takes the goroutine's thread into a namespace, until the function that it returns is called. A thread must not be left to end
// there: if it was the process's first one, the process would be taken to be in that namespace.
func enter(ns netns.NsHandle) (leave func()) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err == nil {
		err = netns.Set(ns)
	}
	if err != nil {
		panic(err)
	}
	return func() {
		if err := errors.Join(netns.Set(home), home.Close()); err != nil {
			panic(err)
		}
		runtime.UnlockOSThread()
	}
}

// run runs a command on the host.
func (h *host) run(argv ...string) (out string) {
	h.hosts.Helper()
	h.do(func() { out = run(h.hosts.T, argv...) })
	return out
}

// remotes are the VEs that are not on the host.
func (h *host) remotes() []Remote {
	var list []Remote
	for name, at := range h.hosts.at {
		if at != h {
			list = append(list, Remote{Lease: h.hosts.of[name], Host: at.under.Self})
		}
	}
	return list
}

// join tells all hosts of all VEs.
func (hs *hosts) join() {
	hs.Helper()
	for _, h := range hs.all {
		h.join()
	}
}

func (h *host) join() {
	h.hosts.Helper()
	h.do(func() {
		if err := h.fabric.SetOverlay(h.hosts.Context(), h.hosts.cfg, h.under, h.remotes()); err != nil {
			h.hosts.Fatal(err)
		}
	})
}

func (hs *hosts) lease(name string) Lease {
	hs.Helper()
	l, err := Allocate(hs.cfg, hs.taken, "uuid of "+name)
	if err != nil {
		hs.Fatal(err)
	}
	l.Name = name
	hs.taken[l.IPv4.Addr()], hs.taken[l.IPv6.Addr()] = true, true
	hs.of[name] = l
	return l
}

func (hs *hosts) nic(name string) model.NIC {
	return (&world{cfg: hs.cfg}).nic(hs.of[name])
}

// container makes a VE on the host; other hosts are not told.
func (h *host) container(name string) ve {
	h.hosts.Helper()
	h.hosts.lease(name)
	h.hosts.at[name] = h
	return h.half(name, false)
}

// half is a VE's process on this host, of which there can be another elsewhere.
func (h *host) half(name string, shut bool) ve {
	h.hosts.Helper()
	v := (&world{T: h.hosts.T, dir: h.dir, cfg: h.hosts.cfg}).process()
	nic := h.hosts.nic(name)
	nic.Shut = shut
	h.do(func() {
		if err := h.fabric.Veth(h.hosts.Context(), nic, v.pid); err != nil {
			h.hosts.Fatal(err)
		}
	})
	return v
}

func (h *host) gate(name string, open bool) {
	h.hosts.Helper()
	h.do(func() {
		if err := h.fabric.Gate(h.hosts.Context(), h.hosts.nic(name), open); err != nil {
			h.hosts.Fatal(err)
		}
	})
}

// Every VE reaches every other one, by both families, with packets of full size; and none of it is flooded.
func TestVEsOnDifferentHostsReachEachOther(t *testing.T) {
	for name, six := range map[string]bool{"over ipv4": false, "over ipv6": true} {
		t.Run(name, func(t *testing.T) {
			hs := newHosts(t, 3, six)
			ves := map[string]ve{}
			for i, name := range []string{"a", "b", "c", "d"} {
				ves[name] = hs.all[i%3].container(name)
			}
			hs.join()
			for from, v := range ves {
				for to := range ves {
					l := hs.of[to]
					size := fmt.Sprint(hs.cfg.MTU - 28)
					out := v.run("ping", "-4", "-c2", "-i0.01", "-W1", "-M", "do", "-s", size, l.IPv4.Addr().String())
					wantIn(t, out, " 0% packet loss")
					size = fmt.Sprint(hs.cfg.MTU - 48)
					out = v.run("ping", "-6", "-c2", "-i0.01", "-W1", "-M", "do", "-s", size, l.IPv6.Addr().String())
					wantIn(t, out, " 0% packet loss")
					if t.Failed() {
						t.Fatalf("from %s to %s", from, to)
					}
				}
			}
		})
	}
}

func TestGatewayIsEverywhereTheHostsOwn(t *testing.T) {
	hs := newHosts(t, 2, false)
	a, b := hs.all[0].container("a"), hs.all[1].container("b")
	hs.join()
	for i, v := range []ve{a, b} {
		for _, gateway := range []netip.Addr{hs.cfg.IPv4.Addr(), hs.cfg.IPv6.Addr()} {
			v.run("ip", "neigh", "flush", "all")
			wantIn(t, v.run("ping", "-c3", "-i0.01", "-W1", gateway.String()), " 0% packet loss")
		}
		// Nobody else answers: the other host's gateway is taken away, and this one's too.
		const count = `ip -s -j link show polder0-x | tr , '\n' | grep -A2 '"tx"'`
		before := hs.all[i].run("sh", "-c", count)
		hs.all[i].run("ip", "addr", "flush", "dev", "polder0")
		v.run("ip", "neigh", "flush", "all")
		if out, err := v.exec("ping", "-c2", "-i0.1", "-W1", hs.cfg.IPv4.Addr().String()); err == nil {
			t.Errorf("another host answers for the gateway: %s", out)
		}
		if after := hs.all[i].run("sh", "-c", count); after != before {
			t.Errorf("sent to other hosts: %s packets before, %s after", before, after)
		}
	}
}

func TestSetOverlayMends(t *testing.T) {
	hs := newHosts(t, 2, false)
	a := hs.all[0].container("a")
	hs.all[1].container("b")
	hs.join()
	h := hs.all[0]
	b := hs.of["b"]
	for name, fault := range map[string]func(){
		"nothing":               func() {},
		"a new daemon":          h.restart,
		"device deleted":        func() { h.run("ip", "link", "del", "polder0-x") },
		"device off the bridge": func() { h.run("ip", "link", "set", "polder0-x", "nomaster") },
		"device down":           func() { h.run("ip", "link", "set", "polder0-x", "down") },
		"device of another kind": func() {
			h.run("sh", "-c", "ip link del polder0-x && ip link add polder0-x type vxlan id 7 dstport 4789 local 192.0.2.1")
		},
		"flooding": func() {
			h.run("bridge", "link", "set", "dev", "polder0-x", "learning", "on", "flood", "on", "neigh_suppress", "off")
		},
		"mtu":                   func() { h.run("ip", "link", "set", "polder0-x", "mtu", "1280") },
		"forwarding entry gone": func() { h.run("bridge", "fdb", "del", b.MAC, "dev", "polder0-x", "master") },
		"host's entry gone":     func() { h.run("bridge", "fdb", "del", b.MAC, "dev", "polder0-x", "self") },
		"host's entry wrong":    func() { h.run("bridge", "fdb", "replace", b.MAC, "dev", "polder0-x", "self", "dst", "192.0.2.77") },
		"neighbour gone":        func() { h.run("ip", "neigh", "del", b.IPv4.Addr().String(), "dev", "polder0") },
		"neighbour wrong": func() {
			h.run("ip", "neigh", "replace", b.IPv6.Addr().String(), "lladdr", "02:00:00:00:00:99", "dev", "polder0")
		},
		"learned at a wrong port": func() { h.run("bridge", "fdb", "replace", b.MAC, "dev", HostName("uuid of a", 0), "master", "dynamic") },
		"entries of others": func() {
			h.run("bridge", "fdb", "add", "02:00:00:00:00:77", "dev", "polder0-x", "self", "dst", "192.0.2.77")
			h.run("bridge", "fdb", "add", "02:00:00:00:00:77", "dev", "polder0-x", "master", "static")
			h.run("ip", "neigh", "add", "10.87.0.77", "lladdr", "02:00:00:00:00:77", "dev", "polder0", "nud", "permanent")
		},
	} {
		t.Run(name, func(t *testing.T) {
			want := h.overlayState()
			fault()
			h.join()
			if got := h.overlayState(); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
			a.run("ip", "neigh", "flush", "all")
			a.run("ping", "-4", "-c1", "-W1", "-M", "do", "-s", fmt.Sprint(hs.cfg.MTU-28), b.IPv4.Addr().String())
			a.run("ping", "-6", "-c1", "-W1", b.IPv6.Addr().String())
		})
	}
}

// overlayState is all that the kernel has of it.
func (h *host) overlayState() string {
	h.hosts.Helper()
	return h.run("sh", "-c", `bridge -d link show dev polder0-x | sed "s/^[0-9]*: //; s/hwmode.*//"; bridge fdb show dev polder0-x | grep -v "master.*permanent" | sort; bridge fdb show br polder0 | grep static | sort; ip neigh show dev polder0 nud permanent | sort`)
}

func TestOverlayOfAThousandVEs(t *testing.T) {
	hs := newHosts(t, 1, false)
	hs.cfg.IPv4 = netip.MustParsePrefix("10.87.0.1/20")
	h := hs.all[0]
	h.do(func() { _ = h.fabric.Down(t.Context()) })
	h.restart()
	others := make([]*host, 10)
	for i := range others {
		others[i] = &host{hosts: hs, under: Underlay{Self: netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})}}
	}
	for i := range 1000 {
		name := fmt.Sprintf("ve%d", i)
		hs.lease(name)
		hs.at[name] = others[i%10]
	}
	remotes := h.remotes()
	measure := func(what string, f func() error) {
		t.Helper()
		h.do(func() {
			began := time.Now()
			if err := f(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %v", what, time.Since(began))
		})
	}
	set := func() error { return h.fabric.SetOverlay(t.Context(), hs.cfg, h.under, remotes) }
	measure("first time", set)
	for range 3 {
		measure("nothing changed", set)
	}
	remotes[7].Host = others[9].under.Self
	measure("one moved", set)
	remotes[8].Host = others[9].under.Self
	one := func() error { return h.fabric.SetRemote(t.Context(), hs.cfg, h.under, remotes[8]) }
	measure("one moved, by itself", one)
	measure("one not moved, by itself", one)
	if got := strings.Count(h.overlayState(), "dst 192.0.2.109"); got != 102 && got != 101 && got != 100 {
		t.Errorf("%d entries lead to the host", got)
	}
	measure("address changed", func() error {
		h.under.Self = netip.MustParseAddr("192.0.2.55")
		return set()
	})
	measure("alone again", func() error { h.under.Self = netip.Addr{}; return set() })
	if state := h.run("sh", "-c", "ip neigh show dev polder0 nud permanent; ip link show type vxlan"); state != "" {
		t.Errorf("left behind: %s", state)
	}
}
