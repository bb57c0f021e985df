//go:build integration

package store_test

import (
	"fmt"
	"testing"
	"time"

	"polder/internal/store"
)

// TestGrowFromOneToThree starts with the store of a host alone. Writes go on through all of it.
func TestGrowFromOneToThree(t *testing.T) {
	w := newWorld(t)
	alone := w.options(1)
	alone.Peering = nil
	first := w.open(alone)
	if _, err := store.NewTable[int](first, "n", 1).Create(t.Context(), "alone", 1); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s := w.open(w.options(1))
	table := store.NewTable[int](s, "n", 1)
	if rec, err := table.Get(t.Context(), "alone"); err != nil || rec.Value != 1 {
		t.Errorf("record of before: %v, %v", rec, err)
	}
	written := make(chan int)
	stop := make(chan struct{})
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				written <- n
				return
			default:
			}
			start := time.Now()
			if _, err := table.Create(t.Context(), fmt.Sprintf("%06d", n), n); err != nil {
				t.Errorf("write %d, after %v: %v", n, time.Since(start), err)
			}
		}
	}()
	others := w.join(s, 2, 3)
	close(stop)
	n := <-written
	t.Logf("%d writes meanwhile", n)
	for _, other := range others {
		recs, err := store.NewTable[int](other, "n", 1).List(t.Context())
		if err != nil || len(recs) != n+1 {
			t.Errorf("%d records, want %d; %v", len(recs), n+1, err)
		}
		// A member may take some seconds to open its clients' port.
		w.await(patience, func() error {
			members, err := other.Members(t.Context())
			if err != nil || len(members) != 3 {
				return fmt.Errorf("members %+v, %w", members, err)
			}
			for i, m := range members {
				if m.Name != fmt.Sprint("h", i+1) || m.Peer != fmt.Sprintf("127.0.7.%d:7441", i+1) || m.Client == "" || m.Learner || !m.Healthy || m.Leader != (i == 0) {
					return fmt.Errorf("member %d: %+v", i, m)
				}
			}
			return nil
		})
	}
}
