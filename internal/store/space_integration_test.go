//go:build integration

package store_test

import (
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/internal/store"
)

// TestClientOfFullMember writes to a member whose disk is full.
func TestClientOfFullMember(t *testing.T) {
	w := newWorld(t)
	s := w.open(w.options(1))
	client := w.client(1)
	table := store.NewTable[int](client, "n", 1)
	if _, err := table.Create(t.Context(), "old", 1); err != nil {
		t.Fatal(err)
	}
	store.SetFree(s, func() (api.Bytes, error) { return 100 * api.MiB, nil })
	_, err := table.Create(t.Context(), "new", 1)
	if kindOf(err, api.Exhausted) != nil || !strings.Contains(err.Error(), `write n "new": `) || !strings.Contains(err.Error(), "only 100MiB is free") {
		t.Errorf("creating a record: %v", err)
	}
	if _, err := table.Put(t.Context(), "old", 2); err != nil {
		t.Errorf("changing a record: %v", err)
	}
	if _, err := table.Create(store.Freeing(t.Context()), "urgent", 1); err != nil {
		t.Errorf("creating a record that frees space: %v", err)
	}
	store.SetFree(s, func() (api.Bytes, error) { return 10 * api.MiB, nil })
	_, err = table.Put(t.Context(), "old", 3)
	if err := kindOf(err, api.Exhausted); err != nil {
		t.Error(err)
	}
	if err := table.Delete(t.Context(), "old"); err != nil {
		t.Errorf("deleting a record: %v", err)
	}
}

// TestCloseDoesNotWaitForClients closes a member that a client watches.
func TestCloseDoesNotWaitForClients(t *testing.T) {
	w := newWorld(t)
	s := w.open(w.options(1))
	client := w.client(1)
	changes := store.NewTable[int](client, "n", 1).Watch(t.Context(), 0)
	if _, err := store.NewTable[int](client, "n", 1).Create(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	<-changes
	start := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("closing took %v", took)
	}
	s = w.open(w.options(1))
	if _, err := store.NewTable[int](s, "n", 1).Create(t.Context(), "b", 1); err != nil {
		t.Error(err)
	}
	if c := <-changes; c.Key != "b" {
		t.Errorf("the client's watch saw %+v", c)
	}
}
