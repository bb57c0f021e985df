package host

import (
	"sync"
	"testing"
)

// One at a time is at a VE's remains, others are not kept from other VEs', and nothing is kept of those who are done.
func TestOneIsAtAVEsRemains(t *testing.T) {
	s := newSweeper()
	counts := map[string]*int{"a": new(int), "b": new(int)} // the race detector's, and ours
	var wg sync.WaitGroup
	for id, n := range counts {
		for range 100 {
			wg.Go(func() {
				defer s.lock(id)()
				*n++
			})
		}
	}
	wg.Wait()
	held := s.lock("a")
	s.lock("b")()
	held()
	if *counts["a"] != 100 || *counts["b"] != 100 || len(s.byID) != 0 {
		t.Errorf("counted %d and %d; kept %v", *counts["a"], *counts["b"], s.byID)
	}
}
