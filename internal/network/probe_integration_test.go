//go:build integration

package network

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"polder/api"
)

// port gives a host an address of its own in the network; others are told as of a VE.
func (h *host) port() Lease {
	h.hosts.Helper()
	l := h.hosts.lease(h.name)
	h.hosts.at[h.name] = h
	return l
}

func (h *host) probe(target string) (p *Probe) {
	h.hosts.Helper()
	h.do(func() {
		var err error
		if p, err = h.fabric.Probe(h.hosts.Context(), h.hosts.cfg, h.hosts.of[h.name], h.hosts.of[target], 5*time.Millisecond); err != nil {
			h.hosts.Fatal(err)
		}
	})
	h.hosts.Cleanup(func() { p.Stop() })
	return p
}

// answered waits until the VE has answered n times more.
func (p *Probe) answered(t *testing.T, n int) {
	t.Helper()
	before := p.Seen().Answered
	eventually(t, "answers to a probe", func() bool { return p.Seen().Answered >= before+n })
}

func TestProbe(t *testing.T) {
	hs := newHosts(t, 2, false)
	hs.all[0].container("a")
	for _, h := range hs.all {
		h.port()
	}
	hs.join()
	for n, h := range append(hs.all, hs.all...) {
		t.Run(fmt.Sprintf("from %s, %d", h.name, n), func(t *testing.T) {
			if n >= len(hs.all) {
				h.fabric.Prober = []string{"/proc/self/exe", ProberArg}
			}
			p := h.probe("a")
			p.answered(t, 100)
			if seen := p.Seen(); seen.Longest > 2*seen.Every+20*time.Millisecond || seen.Answered < seen.Sent-20 {
				t.Errorf("nothing happens: %+v", seen)
			}
			least, most := hs.all[0].cutOff("a", 150*time.Millisecond, func() {
				if seen := p.Seen(); seen.Longest < 100*time.Millisecond || !seen.Answering {
					t.Errorf("while it is cut off: %+v", seen)
				}
			})
			p.answered(t, 50)
			seen := p.Stop()
			t.Logf("cut off for %v to %v: %+v", least, most, seen)
			if seen.Longest < least-seen.Every || seen.Longest > most+2*seen.Every+20*time.Millisecond {
				t.Errorf("cut off for %v to %v, observed %v", least, most, seen.Longest)
			}
			if again := p.Stop(); again != seen {
				t.Errorf("stopped again: %+v, before %+v", again, seen)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		l := hs.lease("nobody")
		p := hs.all[1].probe("nobody")
		<-time.After(50 * time.Millisecond)
		if seen := p.Stop(); seen.Answering || seen.Longest != 0 || seen.Sent < 5 {
			t.Errorf("%s: %+v", l.IPv4, seen)
		}
	})
}

func TestProbeThatCannotBegin(t *testing.T) {
	hs := newHosts(t, 1, false)
	h := hs.all[0]
	h.container("a")
	port := h.port()
	for name, argv := range map[string][]string{"no program": {"/nonexistent"}, "one that ends": {"/bin/false"}, "one that talks": {"/bin/echo", "hello"}} {
		h.fabric.Prober = argv
		h.do(func() {
			if p, err := h.fabric.Probe(t.Context(), hs.cfg, port, hs.of["a"], 5*time.Millisecond); err == nil {
				t.Errorf("%s: got %+v", name, p.Stop())
			}
		})
	}
	h.fabric.Prober = nil
	h.do(func() {
		if _, err := h.fabric.Probe(t.Context(), hs.cfg, port, Lease{}, 5*time.Millisecond); api.KindOf(err) != api.Invalid {
			t.Errorf("no target: got %v", err)
		}
	})
}

// A program that is busy measures as well as one that is not, by a process of its own.
func TestProbeOfABusyProgram(t *testing.T) {
	hs := newHosts(t, 1, false)
	hs.all[0].container("a")
	hs.all[0].port()
	hs.join()
	hs.all[0].fabric.Prober = []string{"/proc/self/exe", ProberArg}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for range 4 * runtime.GOMAXPROCS(0) {
		go func() {
			for keep := []byte{}; ctx.Err() == nil; keep = make([]byte, 1<<16) {
				_ = keep
			}
		}()
	}
	p := hs.all[0].probe("a")
	p.answered(t, 50)
	least, most := hs.all[0].cutOff("a", 300*time.Millisecond, func() {})
	p.answered(t, 20)
	seen := p.Stop()
	t.Logf("cut off for %v to %v: %+v", least, most, seen)
	if seen.Longest < least-seen.Every || seen.Longest > most+2*seen.Every+20*time.Millisecond || seen.Every > 50*time.Millisecond {
		t.Errorf("cut off for %v to %v, observed %v", least, most, seen.Longest)
	}
}

// cutOff shuts a VE's gate for some time, and says between what that can have been.
func (h *host) cutOff(name string, d time.Duration, then func()) (least, most time.Duration) {
	h.hosts.Helper()
	shutting := time.Now()
	h.gate(name, false)
	shut := time.Now()
	<-time.After(d)
	then()
	opening := time.Now()
	h.gate(name, true)
	return opening.Sub(shut), time.Since(shutting)
}

// The host's own port is invisible to the host's own network: nothing is routed there, and nobody is answered from there.
func TestHostPortDisturbsNothing(t *testing.T) {
	hs := newHosts(t, 1, false)
	h := hs.all[0]
	a := h.container("a")
	h.port()
	hs.join()
	before := h.run("sh", "-c", "ip route show table all; ip -6 route show table all; ip addr show polder0 | grep inet")
	h.probe("a").answered(t, 5)
	wantSame := func() {
		t.Helper()
		if after := h.run("sh", "-c", "ip route show table all; ip -6 route show table all; ip addr show polder0 | grep inet"); after != before {
			t.Errorf("got %s\nwant %s", after, before)
		}
	}
	wantSame()
	for range 20 {
		a.run("ip", "neigh", "flush", "all")
		a.run("ping", "-c1", "-W1", h.hosts.cfg.IPv4.Addr().String())
		wantIn(t, a.run("ip", "neigh", "show", h.hosts.cfg.IPv4.Addr().String()), h.hosts.cfg.bridgeMAC().String())
	}
	// A packet for it must not go round between the host and its port.
	_, _ = a.exec("ping", "-c3", "-i0.01", "-W0.1", hs.of[h.name].IPv4.Addr().String())
	rx := h.run("sh", "-c", "ip -s link show "+hs.cfg.hostPort()+" | awk '/RX:/{getline; print $2}'")
	if n, err := strconv.Atoi(strings.TrimSpace(rx)); err != nil || n > 300 {
		t.Errorf("%s packets came in at the host's port: %v", rx, err)
	}
	h.run("ip", "link", "del", hs.cfg.hostPort())
	h.probe("a").answered(t, 5)
	wantSame()
}

// A VE that goes from host to host is found again at once by everybody, wherever they are.
func TestVEMoves(t *testing.T) {
	hs := newHosts(t, 3, false)
	h1, h2, h3 := hs.all[0], hs.all[1], hs.all[2]
	h1.container("mover")
	watchers := map[string]ve{"w1": h1.container("w1"), "w2": h2.container("w2"), "w3": h3.container("w3")}
	for _, h := range hs.all {
		h.port()
	}
	hs.join()
	for i, way := range [][2]*host{{h1, h2}, {h2, h3}, {h3, h1}, {h1, h3}} {
		from, to := way[0], way[1]
		t.Run(fmt.Sprintf("%d from %s to %s", i+1, from.name, to.name), func(t *testing.T) {
			to.half("mover", true)
			var probes []*Probe
			for _, h := range hs.all {
				probes = append(probes, h.probe("mover"))
			}
			pings := map[string]*exec.Cmd{}
			outs := map[string]*strings.Builder{}
			for name, w := range watchers {
				cmd := exec.Command("nsenter", "-t", fmt.Sprint(w.pid), "-n", "ping", "-D", "-i0.005", "-c200", "-W1", hs.of["mover"].IPv4.Addr().String())
				outs[name] = &strings.Builder{}
				cmd.Stdout = outs[name]
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				pings[name] = cmd
			}
			for _, p := range probes {
				p.answered(t, 40)
			}
			took := hs.cutOver("mover", from, to)
			for i, p := range probes {
				p.answered(t, 20)
				seen := p.Stop()
				t.Logf("%s: cut over in %v, observed %v, %d of %d answered", hs.all[i].name, took, seen.Longest, seen.Answered, seen.Sent)
				if seen.Longest > took+2*seen.Every+20*time.Millisecond {
					t.Errorf("%s: cut over in %v, observed %v", hs.all[i].name, took, seen.Longest)
				}
			}
			for name, cmd := range pings {
				_ = cmd.Wait()
				if lost := lostPings(t, outs[name].String()); time.Duration(lost)*5*time.Millisecond > took+50*time.Millisecond {
					t.Errorf("%s lost %d pings, cut over in %v", name, lost, took)
				}
			}
			if err := from.unplug("mover"); err != nil {
				t.Fatal(err)
			}
			hs.join()
		})
	}
}

// cutOver does what hosts do when the store says that a VE is elsewhere now, and says how long its gates were shut.
func (hs *hosts) cutOver(name string, from, to *host) time.Duration {
	hs.Helper()
	began := time.Now()
	from.gate(name, false)
	hs.at[name] = to
	for _, h := range hs.all {
		if h == to {
			h.gate(name, true)
			continue
		}
		h.do(func() {
			if err := h.fabric.SetRemote(hs.Context(), hs.cfg, h.under, Remote{Lease: hs.of[name], Host: to.under.Self}); err != nil {
				hs.Fatal(err)
			}
		})
	}
	took := time.Since(began)
	to.do(func() {
		if err := to.fabric.DropRemote(hs.Context(), hs.cfg, hs.of[name]); err != nil {
			hs.Fatal(err)
		}
	})
	return took
}

func (h *host) unplug(name string) (err error) {
	h.do(func() { err = h.fabric.Unplug(h.hosts.Context(), h.hosts.nic(name)) })
	return err
}

func lostPings(t *testing.T, out string) int {
	t.Helper()
	found := regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("ping: %s", out)
	}
	sent, _ := strconv.Atoi(found[1])
	received, _ := strconv.Atoi(found[2])
	return sent - received
}
