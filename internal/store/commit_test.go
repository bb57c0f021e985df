package store_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"polder/api"
	"polder/internal/store"
)

// TestTransactionsHappenOnce loses every other request or answer on the way while several count up together: by comparing,
// and by records that must be new.
func TestTransactionsHappenOnce(t *testing.T) {
	s := open(t, t.TempDir())
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(1, 2))
	closeStore := store.LoseAnswers(s, func() store.Loss {
		mu.Lock()
		defer mu.Unlock()
		return []store.Loss{store.Arrives, store.Arrives, store.Arrives, store.RequestLost, store.AnswerLost, store.RequestDelayed}[random.IntN(6)]
	})
	table, added := store.NewTable[int](s, "n", 1), store.NewTable[int](s, "added", 1)
	if _, err := table.Create(t.Context(), "sum", 0); err != nil {
		t.Fatal(err)
	}
	const workers, rounds = 8, 4
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			for range rounds {
				if _, err := table.Modify(t.Context(), "sum", func(n *int) error { *n++; return nil }); err != nil {
					t.Errorf("add: %v", err)
				}
				// A record that is made and deleted over and over, by one writer: a request that comes late must not make it again.
				key := string(rune('a' + worker))
				if _, err := added.Create(t.Context(), key, 1); err != nil {
					t.Errorf("create: %v", err)
				}
				_, err := added.Create(t.Context(), key, 2)
				wantKind(t, err, api.Exists)
				if err := added.Delete(t.Context(), key); err != nil {
					t.Errorf("delete: %v", err)
				}
				wantKind(t, added.Delete(t.Context(), key), api.NotFound)
			}
		})
	}
	all.Wait()
	if rec, err := table.Get(t.Context(), "sum"); err != nil || rec.Value != workers*rounds {
		t.Errorf("sum is %v, %v; want %d", rec.Value, err, workers*rounds)
	}
	if recs, err := added.List(t.Context()); err != nil || len(recs) > 0 {
		t.Errorf("left over: %v, %v", recs, err)
	}
	if err := closeStore(); err != nil {
		t.Error(err)
	}
}
