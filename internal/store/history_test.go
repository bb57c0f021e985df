package store_test

import (
	"context"
	"testing"

	"polder/internal/store"
)

// A reader that goes on from the last revision it saw gets every change of every table once, in order.
func TestHistoryGoesOnWhereItWasCutOff(t *testing.T) {
	s := opened(t)
	type value struct{ N int }
	a, b := store.NewTable[value](s, "a", 1), store.NewTable[value](s, "b", 1)
	first, err := a.Create(t.Context(), "k", value{0})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 20; n++ {
		table := a
		if n%2 == 0 {
			table = b
		}
		if _, err := table.Put(t.Context(), "k", value{n}); err != nil {
			t.Fatal(err)
		}
	}
	after, want := first.Revision, 1
	for want <= 20 {
		ctx, cancel := context.WithCancel(t.Context())
		entries := s.History(ctx, after)
		for range min(3, 21-want) {
			e := <-entries
			table := a
			if want%2 == 0 {
				table = b
			}
			if c, ok := table.Change(e); !ok || c.Value.N != want || e.Revision <= after {
				t.Fatalf("after revision %d came %+v (%v), want %d", after, c, ok, want)
			}
			after, want = e.Revision, want+1
		}
		cancel()
	}
}
