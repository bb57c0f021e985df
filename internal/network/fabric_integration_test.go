//go:build integration

package network

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"polder/api"
)

func TestVEsReachEachOtherByName(t *testing.T) {
	w := newWorld(t)
	w.up()
	a, b := w.container("a"), w.container("b")
	lb := w.leases[1]
	for _, name := range []string{"b", "b.polder.internal"} {
		wantIn(t, a.run("ping", "-4", "-c1", "-W2", name), "1 received", lb.IPv4.Addr().String())
		wantIn(t, a.run("ping", "-6", "-c1", "-W2", name), "1 received", lb.IPv6.Addr().String())
		wantIn(t, a.run("getent", "ahostsv4", name), lb.IPv4.Addr().String())
		wantIn(t, a.run("getent", "ahostsv6", name), lb.IPv6.Addr().String())
	}
	wantIn(t, a.run("getent", "hosts", lb.IPv4.Addr().String()), "b.polder.internal")
	wantIn(t, a.run("getent", "hosts", lb.IPv6.Addr().String()), "b.polder.internal")
	wantIn(t, b.run("ping", "-4", "-c1", "-W2", w.cfg.IPv4.Addr().String()), "1 received")
	wantIn(t, b.run("ping", "-6", "-c1", "-W2", w.cfg.IPv6.Addr().String()), "1 received")
	if out, err := a.exec("getent", "ahosts", "nobody.polder.internal"); err == nil {
		t.Errorf("a name that is nobody's: %s", out)
	}
}

// A name is right when SetLeases returns, and gone when a later one returns.
func TestSetLeasesIsDoneWhenItReturns(t *testing.T) {
	w := newWorld(t)
	w.up()
	for n := range 30 {
		name := fmt.Sprintf("ve%d", n)
		l := w.lease(name)
		if got := w.ask(name+".polder.internal.", dns.TypeA); !slices.Equal(got, []string{l.IPv4.Addr().String()}) {
			t.Fatalf("%s: got %v, want %s", name, got, l.IPv4.Addr())
		}
	}
	w.leases = w.leases[10:]
	w.publish()
	if got := w.ask("ve3.polder.internal.", dns.TypeAAAA); len(got) != 0 {
		t.Errorf("deleted VE: got %v", got)
	}
}

// ask asks the network's DNS from the host.
func (w *world) ask(name string, kind uint16) []string {
	w.Helper()
	reply, err := dns.Exchange(new(dns.Msg).SetQuestion(name, kind), net.JoinHostPort(w.cfg.IPv4.Addr().String(), "53"))
	if err != nil {
		w.Fatal(err)
	}
	var found []string
	for _, rr := range reply.Answer {
		found = append(found, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return found
}

func TestManyLeasesAtTheSameTime(t *testing.T) {
	w := newWorld(t)
	w.cfg.IPv4 = netip.MustParsePrefix("10.87.0.1/20")
	w.up()
	var all []Lease
	for n := range 1000 {
		l, err := Allocate(w.cfg, w.taken, fmt.Sprint(n))
		if err != nil {
			t.Fatal(err)
		}
		l.Name = fmt.Sprintf("ve%d", n)
		w.taken[l.IPv4.Addr()], w.taken[l.IPv6.Addr()] = true, true
		all = append(all, l)
	}
	w.leases = all[:950]
	w.publish()
	w.leases = slices.Clone(all[:951])
	w.publish()
	// 49 launches at once, each of which adds its lease to what is there and publishes the whole.
	var mu sync.Mutex
	readings := 0
	var wg sync.WaitGroup
	began := time.Now()
	for n := 951; n < 1000; n++ {
		wg.Go(func() {
			mu.Lock()
			w.leases = append(w.leases, all[n])
			mu.Unlock()
			err := w.fabric.SetLeases(t.Context(), w.cfg, func(context.Context) ([]Lease, error) {
				mu.Lock()
				defer mu.Unlock()
				readings++
				return slices.Clone(w.leases), nil
			})
			if err != nil {
				t.Error(err)
			}
			if got := w.ask(all[n].Name+".polder.internal.", dns.TypeA); len(got) != 1 || got[0] != all[n].IPv4.Addr().String() {
				t.Errorf("%s: got %v, want %s", all[n].Name, got, all[n].IPv4.Addr())
			}
		})
	}
	wg.Wait()
	t.Logf("49 publications at once took %v and %d readings", time.Since(began), readings)
	if readings >= 49 {
		t.Error("nothing was shared")
	}
}

func TestUpAdoptsAndMends(t *testing.T) {
	w := newWorld(t)
	w.up()
	a := w.container("a")
	w.container("b")
	pid := w.pid()
	w.fabric = w.newFabric()
	w.up()
	w.publish()
	if got := w.pid(); got != pid {
		t.Errorf("dnsmasq is process %d, was %d: want it left alone", got, pid)
	}
	a.run("ping", "-c1", "-W2", "b")

	kill(t, pid)
	w.fabric = w.newFabric()
	w.up()
	if got := w.pid(); got == pid {
		t.Error("dnsmasq is dead and was not started again")
	}
	a.run("ping", "-c1", "-W2", "b")

	kill(t, w.pid())
	w.lease("c")
	if got := w.ask("c.polder.internal.", dns.TypeA); len(got) != 1 {
		t.Errorf("got %v", got)
	}

	run(t, "nft", "delete", "table", "inet", "polder")
	run(t, "ip", "link", "set", w.cfg.Bridge, "down")
	run(t, "ip", "addr", "del", w.cfg.IPv4.String(), "dev", w.cfg.Bridge)
	if err := os.Remove(w.fabric.resolver.files.pid); err != nil {
		t.Fatal(err)
	}
	w.fabric = w.newFabric()
	w.up()
	run(t, "nft", "list", "table", "inet", "polder")
	a.run("ping", "-c1", "-W2", "b")
	a.run("ping", "-6", "-c1", "-W2", w.cfg.IPv6.Addr().String())

	// Another configuration: dnsmasq is started again.
	pid = w.pid()
	w.cfg.Domain = "lab.internal"
	w.up()
	w.publish()
	if w.pid() == pid || len(w.ask("b.lab.internal.", dns.TypeA)) != 1 {
		t.Error("the new domain is not served")
	}
}

func (w *world) pid() int {
	w.Helper()
	p, err := w.fabric.resolver.find()
	if err != nil || p == nil {
		w.Fatalf("no dnsmasq: %v", err)
	}
	defer p.close()
	return p.pid
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "dnsmasq dies", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err != nil || len(text) == 0
	})
}

// What is up does not turn into something else, and Down still knows it.
func TestUpRefusesOtherPrefixes(t *testing.T) {
	w := newWorld(t)
	before := state(t)
	w.up()
	other := w.cfg
	other.IPv4 = netip.MustParsePrefix("10.99.0.1/24")
	elsewhere := w.cfg
	elsewhere.Bridge = "polder1"
	for _, cfg := range []Config{other, elsewhere} {
		if err := w.newFabric().Up(t.Context(), cfg); api.KindOf(err) != api.Conflict {
			t.Errorf("got %v", err)
		}
	}
	if err := w.newFabric().Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := state(t); !maps.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
	if err := w.newFabric().Up(t.Context(), other); err != nil {
		t.Error(err)
	}
}

// state is all that a network could leave behind.
func state(t *testing.T) map[string]string {
	t.Helper()
	var links []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(run(t, "ip", "-j", "link")), &links); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{"nft": run(t, "nft", "list", "ruleset"), "links": fmt.Sprint(links)}
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/lo/accept_ra", "net/ipv6/conf/default/accept_ra"} {
		value, err := readSetting(name)
		if err != nil {
			t.Fatal(err)
		}
		found[name] = value
	}
	paths, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if comm, _ := os.ReadFile(path); string(comm) == "dnsmasq\n" {
			if args, _ := os.ReadFile(filepath.Dir(path) + "/cmdline"); len(args) > 0 { // else a zombie that its parent leaves
				found["process "+filepath.Dir(path)] = string(args)
			}
		}
	}
	return found
}

func TestDownLeavesNothing(t *testing.T) {
	w := newWorld(t)
	before := state(t)
	w.up()
	v := w.container("a")
	if up := state(t); maps.Equal(before, up) || up["net/ipv4/ip_forward"] != "1" {
		t.Fatalf("nothing is up: %v", up)
	}
	if err := w.fabric.Unplug(t.Context(), w.nic(w.leases[0])); err != nil {
		t.Fatal(err)
	}
	if err := w.fabric.Unplug(t.Context(), w.nic(w.leases[0])); err != nil {
		t.Errorf("again: %v", err)
	}
	if out, err := v.exec("ip", "link", "show", "eth0"); err == nil {
		t.Errorf("unplugged, and still there: %s", out)
	}
	// By another process than made it, and twice.
	for range 2 {
		if err := w.newFabric().Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := state(t); !maps.Equal(before, after) {
			t.Errorf("before %v\nafter %v", before, after)
		}
		if _, err := os.Stat(w.dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", w.dir, err)
		}
	}
}

func TestUplinkKeepsListeningToRouters(t *testing.T) {
	w := newWorld(t)
	run(t, "ip", "link", "add", "up0", "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "del", "up0") })
	w.up()
	const setting = "net/ipv6/conf/up0/accept_ra"
	if got, _ := readSetting(setting); got != "2" {
		t.Errorf("accept_ra is %q: want 2", got)
	}
	if err := w.fabric.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := readSetting(setting); got != "1" {
		t.Errorf("accept_ra is %q after down: want 1", got)
	}
}
