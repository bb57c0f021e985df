package store_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"polder/api"
	"polder/internal/store"
)

// TestFullDisk walks through the stages of a disk that fills up and is emptied again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	var free atomic.Int64
	reserve := filepath.Join(dir, "reserve")
	store.SetFree(s, func() (api.Bytes, error) {
		n := api.Bytes(free.Load())
		if _, err := os.Stat(reserve); err == nil {
			n -= 64 * api.MiB
		}
		return n, nil
	})
	free.Store(int64(400 * api.MiB))
	table := store.NewTable[int](s, "n", 1)
	if _, err := table.Put(t.Context(), "old", 0); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name                   string
		free                   api.Bytes // with the reserve deleted
		create, urgent, change api.Kind
	}{
		{"plenty", 400 * api.MiB, "", "", ""},
		{"low", 120 * api.MiB, api.Exhausted, "", ""},
		{"very low: the reserve is spent", 60 * api.MiB, api.Exhausted, "", ""},
		{"none", 10 * api.MiB, api.Exhausted, api.Exhausted, api.Exhausted},
		{"some again", 60 * api.MiB, api.Exhausted, "", ""},
		{"plenty again", 400 * api.MiB, "", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			free.Store(int64(test.free))
			_, err := table.Create(t.Context(), "new", 1)
			wantKind(t, err, test.create)
			if err != nil && !strings.Contains(err.Error(), "delete VEs or images") {
				t.Errorf("error does not say what to do: %v", err)
			}
			_, err = table.Create(store.Freeing(t.Context()), "urgent", 1)
			wantKind(t, err, test.urgent)
			_, err = table.Put(t.Context(), "old", 2)
			wantKind(t, err, test.change)
			for _, key := range []string{"new", "urgent"} { // deleting always works
				if err := table.Delete(t.Context(), key); api.KindOf(err) == api.Exhausted {
					t.Error(err)
				}
			}
		})
	}
}

func TestFullDatabase(t *testing.T) {
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir(), Quota: 24 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	table := store.NewTable[string](s, "text", 1)
	large := strings.Repeat("x", 1<<20)
	for range 40 { // history alone never fills it
		if _, err := table.Put(t.Context(), "same", large); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	for err == nil && n < 200 {
		n++
		_, err = table.Create(t.Context(), fmt.Sprint(n), large)
	}
	wantKind(t, err, api.Exhausted)
	if err == nil || !strings.Contains(err.Error(), "of its quota of 24MiB): delete VEs") {
		t.Errorf("error does not say what to do: %v", err)
	}
	if rec, err := table.Get(t.Context(), "same"); err != nil || rec.Value != large {
		t.Errorf("reading from a full store: %v", err)
	}
	if _, err := table.Put(t.Context(), "same", "small"); err != nil {
		t.Errorf("changing a record of a full store: %v", err)
	}
	if _, err := table.Create(store.Freeing(t.Context()), "urgent", ""); err != nil {
		t.Errorf("deleting needs a record: %v", err)
	}
	for i := 1; i < n; i++ {
		if err := table.Delete(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	store.ForgetRelief(s)
	if _, err := table.Create(t.Context(), "new", large); err != nil {
		t.Errorf("after deleting: %v", err)
	}
}

func TestFailedMember(t *testing.T) {
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	table := store.NewTable[int](s, "n", 1)
	store.Fail(s, errors.New("no space left on device"))
	<-s.Failed()
	_, err = table.Put(t.Context(), "a", 1)
	wantKind(t, err, api.Unavailable)
	if s.Err() == nil || err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("store failed with %v, a write then with %v", s.Err(), err)
	}
}
