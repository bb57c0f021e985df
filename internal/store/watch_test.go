package store_test

import (
	"context"
	"encoding/json"
	"testing"

	"polder/api"
	"polder/internal/store"
)

func TestWatchReportsAllInOrder(t *testing.T) {
	s := opened(t)
	table := store.NewTable[int](s, "n", 1)
	_, revision, err := table.Snapshot(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := table.Put(t.Context(), "a", i); err != nil {
			t.Fatal(err)
		}
	}
	changes := table.Watch(t.Context(), revision+1)
	if err := table.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	last := revision
	for i := range 3 {
		c := <-changes
		if c.Key != "a" || c.Value == nil || *c.Value != i || c.Revision <= last || (c.Prev == nil) != (i == 0) {
			t.Errorf("change %d is %+v", i, c)
		}
		last = c.Revision
	}
	if c := <-changes; c.Value != nil || c.Prev == nil || *c.Prev != 2 {
		t.Errorf("last change is %+v, want the deletion", c)
	}
}

func TestWatchFromNow(t *testing.T) {
	table := store.NewTable[int](opened(t), "n", 1)
	if _, err := table.Put(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	changes := table.WatchKey(t.Context(), "a", 0)
	for _, key := range []string{"ab", "a"} {
		if _, err := table.Put(t.Context(), key, 2); err != nil {
			t.Fatal(err)
		}
	}
	if c := <-changes; c.Key != "a" || *c.Value != 2 {
		t.Errorf("change is %+v", c)
	}
}

func TestWatchEndsWithContext(t *testing.T) {
	table := store.NewTable[int](opened(t), "n", 1)
	ctx, cancel := context.WithCancel(t.Context())
	changes := table.Watch(ctx, 0)
	cancel()
	for c := range changes {
		t.Errorf("unexpected %+v", c)
	}
}

func TestWatchAcrossCompactionStartsAnew(t *testing.T) {
	s := opened(t)
	table := store.NewTable[int](s, "n", 1)
	for i := range 5 {
		if _, err := table.Put(t.Context(), "a", i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.Put(t.Context(), "b", 9); err != nil {
		t.Fatal(err)
	}
	store.Compact(t, s)
	changes := table.Watch(t.Context(), 2)
	if c := <-changes; !c.Reset {
		t.Errorf("first change is %+v, want a reset", c)
	}
	for _, want := range []struct {
		key   string
		value int
	}{{"a", 4}, {"b", 9}} {
		if c := <-changes; c.Key != want.key || c.Value == nil || *c.Value != want.value {
			t.Errorf("change is %+v, want %v", c, want)
		}
	}
	if _, err := table.Put(t.Context(), "c", 1); err != nil {
		t.Fatal(err)
	}
	if c := <-changes; c.Key != "c" {
		t.Errorf("change after the reset is %+v", c)
	}
}

func TestWatchReportsUnreadableRecord(t *testing.T) {
	s := opened(t)
	changes := store.NewTable[int](s, "n", 1).Watch(t.Context(), 0)
	same := func(old json.RawMessage) (json.RawMessage, error) { return old, nil }
	if _, err := store.NewTable[int](s, "n", 2, same).Put(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	c := <-changes
	if c.Key != "a" || c.Value != nil {
		t.Errorf("change is %+v", c)
	}
	wantKind(t, c.Err, api.Unsupported)
}
