//go:build integration

package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"polder/internal/store"
)

// patience is how long a test waits for what takes a moment on an idle machine.
const patience = 30 * time.Second

// standstill is the longest that writes may take when a member dies. On an idle machine it is two seconds and a half; left to
// itself, etcd answers seven seconds after the death.
const standstill = 5 * time.Second

// writer writes records, one after the other, until it is stopped, and notes how long the longest write took.
type writer struct {
	t       *testing.T
	prefix  string
	table   *store.Table[int]
	cancel  context.CancelFunc
	stopped chan struct{}
	n       int
	longest time.Duration
}

func startWriter(t *testing.T, s *store.Store, prefix string) *writer {
	w := &writer{t: t, prefix: prefix, table: store.NewTable[int](s, "n", 1), stopped: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	go func() {
		defer close(w.stopped)
		for ctx.Err() == nil {
			start := time.Now()
			if _, err := w.table.Create(t.Context(), w.key(w.n), w.n); err != nil {
				t.Errorf("write %s, after %v: %v", w.key(w.n), time.Since(start), err)
				return
			}
			w.longest = max(w.longest, time.Since(start))
			w.n++
		}
	}()
	return w
}

func (w *writer) key(n int) string { return fmt.Sprintf("%s%06d", w.prefix, n) }

// stop returns when the last write is done.
func (w *writer) stop() {
	w.cancel()
	<-w.stopped
}

// check looks for every record, and for every change: each once and in order.
func (w *writer) check(s *store.Store, changes <-chan store.Change[int]) {
	w.t.Helper()
	recs, _, err := store.NewTable[int](s, "n", 1).Snapshot(w.t.Context(), w.prefix)
	if err != nil || len(recs) != w.n {
		w.t.Errorf("%d records of %q, want %d; %v", len(recs), w.prefix, w.n, err)
	}
	for i := 0; i < w.n; {
		select {
		case c := <-changes:
			if !strings.HasPrefix(c.Key, w.prefix) {
				continue
			}
			if c.Key != w.key(i) || c.Value == nil || c.Reset {
				w.t.Fatalf("change %d of %q: %+v", i, w.prefix, c)
			}
			i++
		case <-time.After(patience):
			w.t.Fatalf("change %d of %q does not come", i, w.prefix)
		}
	}
}

// TestKilledMembers kills one member after the other, as leader or not, while a client writes and watches.
func TestKilledMembers(t *testing.T) {
	w := newWorld(t)
	members, s := w.children()
	table := store.NewTable[int](s, "n", 1)
	lease, err := s.Lease(t.Context(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.NewTable[int](s, "alive", 1).Create(t.Context(), "client", 1, store.WithLease(lease)); err != nil {
		t.Fatal(err)
	}
	ended, err := lease.KeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changes := table.Watch(t.Context(), 0)
	history := s.History(t.Context(), 0)
	for round, leads := range []bool{true, false, true, false} {
		writer := startWriter(t, s, fmt.Sprint("round", round, "-"))
		time.Sleep(500 * time.Millisecond)
		victim := w.leader(s)
		for name := range members {
			if !leads && name != w.leader(s) {
				victim = name
			}
		}
		members[victim].kill()
		time.Sleep(4 * time.Second)
		writer.stop()
		t.Logf("round %d: killed %s (leader: %v); %d writes, the longest took %v", round, victim, leads, writer.n, writer.longest)
		if writer.longest > standstill {
			t.Errorf("writes stood still for %v", writer.longest)
		}
		writer.check(s, changes)
		for i := 0; i < writer.n; {
			if c, ok := table.Change(<-history); ok {
				if c.Key != writer.key(i) {
					t.Fatalf("entry %d of the history: %+v", i, c)
				}
				i++
			}
		}
		var n int
		if _, err := fmt.Sscanf(victim, "h%d", &n); err != nil {
			t.Fatal(err)
		}
		members[victim] = w.start(w.options(n))
	}
	select {
	case <-ended:
		t.Error("the lease ended")
	default:
	}
	if _, err := store.NewTable[int](s, "alive", 1).Get(t.Context(), "client"); err != nil {
		t.Error(err)
	}
}

// TestSilentMember lets every packet to and from the member that leads get lost, as if its host had lost its power.
func TestSilentMember(t *testing.T) {
	w := newWorld(t)
	_, s := w.children()
	changes := store.NewTable[int](s, "n", 1).Watch(t.Context(), 0)
	for round := range 3 {
		writer := startWriter(t, s, fmt.Sprint("round", round, "-"))
		time.Sleep(300 * time.Millisecond)
		address := strings.Replace(w.leader(s), "h", "127.0.7.", 1)
		run(t, "nft", "add table ip polder_test; add chain ip polder_test out { type filter hook output priority 0; }; "+
			"add rule ip polder_test out ip daddr "+address+" drop; add rule ip polder_test out ip saddr "+address+" drop")
		t.Cleanup(func() { run(t, "nft", "add table ip polder_test; delete table ip polder_test") })
		time.Sleep(5 * time.Second)
		writer.stop()
		t.Logf("round %d: %d writes, the longest took %v", round, writer.n, writer.longest)
		if writer.longest > standstill {
			t.Errorf("writes stood still for %v", writer.longest)
		}
		start := time.Now()
		writer.check(s, changes)
		if took := time.Since(start); took > standstill {
			t.Errorf("the watch stood still for %v more", took)
		}
		run(t, "nft", "delete table ip polder_test")
		time.Sleep(2 * time.Second)
	}
}
