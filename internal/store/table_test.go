package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"polder/api"
	"polder/internal/store"
)

func TestCreateRefusesTakenKey(t *testing.T) {
	table := store.NewTable[ve](opened(t), "ve", 1)
	if _, err := table.Create(t.Context(), "c1", ve{Name: "c1"}); err != nil {
		t.Fatal(err)
	}
	_, err := table.Create(t.Context(), "c1", ve{Name: "other"})
	wantKind(t, err, api.Exists)
	if rec, err := table.Get(t.Context(), "c1"); err != nil || rec.Value.Name != "c1" {
		t.Errorf("record is %v, %v", rec, err)
	}
}

func TestUpdateIsCompareAndSwap(t *testing.T) {
	table := store.NewTable[ve](opened(t), "ve", 1)
	first, err := table.Put(t.Context(), "c1", ve{State: "stopped"})
	if err != nil {
		t.Fatal(err)
	}
	second := first
	second.Value.State = "running"
	if second, err = table.Update(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	_, err = table.Update(t.Context(), first)
	wantKind(t, err, api.Conflict)
	wantKind(t, table.DeleteIf(t.Context(), first), api.Conflict)
	if err := table.DeleteIf(t.Context(), second); err != nil {
		t.Error(err)
	}
	_, err = table.Update(t.Context(), second)
	wantKind(t, err, api.NotFound)
	wantKind(t, table.Delete(t.Context(), "c1"), api.NotFound)
	_, err = table.Get(t.Context(), "c1")
	wantKind(t, err, api.NotFound)
}

func TestListIsSortedAndKeepsTablesApart(t *testing.T) {
	s := opened(t)
	table, other := store.NewTable[ve](s, "ve", 1), store.NewTable[ve](s, "ve-log", 1)
	for _, key := range []string{"b", "a/2", "a/1"} {
		if _, err := table.Create(t.Context(), key, ve{Name: key}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := other.Create(t.Context(), "x", ve{}); err != nil {
		t.Fatal(err)
	}
	keys := func(recs []store.Record[ve], err error) string {
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, rec := range recs {
			keys = append(keys, rec.Key)
		}
		return strings.Join(keys, " ")
	}
	if got := keys(table.List(t.Context())); got != "a/1 a/2 b" {
		t.Errorf("list: %s", got)
	}
	recs, revision, err := table.Snapshot(t.Context(), "a/")
	if got := keys(recs, err); got != "a/1 a/2" || revision == 0 {
		t.Errorf("snapshot: %s at %d", got, revision)
	}
	if now, err := s.Revision(t.Context()); err != nil || now != revision {
		t.Errorf("revision is %d, %v; the snapshot said %d", now, err, revision)
	}
}

func TestModifyCountsRight(t *testing.T) {
	table := store.NewTable[int](opened(t), "counter", 1)
	if _, err := table.Create(t.Context(), "n", 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	for range 4 {
		go func() {
			for range 10 {
				if _, err := table.Modify(t.Context(), "n", func(n *int) error { *n++; return nil }); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if rec, err := table.Get(t.Context(), "n"); err != nil || rec.Value != 40 {
		t.Errorf("counter is %d, %v", rec.Value, err)
	}
	stop := errors.New("enough")
	if _, err := table.Modify(t.Context(), "n", func(*int) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of the change is %v", err)
	}
}

func TestTxnIsAllOrNothing(t *testing.T) {
	s := opened(t)
	ves, addresses := store.NewTable[ve](s, "ve", 1), store.NewTable[string](s, "address", 1)
	taken, err := addresses.Create(t.Context(), "10.0.0.2", "c0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Txn(t.Context(), ves.OpCreate("c1", ve{}), addresses.OpCreate("10.0.0.2", "c1"))
	wantKind(t, err, api.Exists)
	if want := `address "10.0.0.2" exists already`; err == nil || err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	_, err = ves.Get(t.Context(), "c1")
	wantKind(t, err, api.NotFound)

	revision, err := s.Txn(t.Context(), ves.OpCreate("c1", ve{}), addresses.OpDelete(taken), addresses.OpPut("10.0.0.3", "c1"), addresses.OpClear("10.0.0.9"))
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := ves.Get(t.Context(), "c1"); err != nil || rec.Revision != revision {
		t.Errorf("record is %v, %v; want revision %d", rec, err, revision)
	}
	_, err = addresses.Get(t.Context(), "10.0.0.2")
	wantKind(t, err, api.NotFound)
}

func TestTxnConditions(t *testing.T) {
	s := opened(t)
	table := store.NewTable[int](s, "n", 1)
	rec, err := table.Create(t.Context(), "a/1", 1)
	if err != nil {
		t.Fatal(err)
	}
	stale := rec
	stale.Revision--
	for name, test := range map[string]struct {
		op   store.Op
		want api.Kind
	}{
		"absent":                   {table.OpAbsent("b"), ""},
		"absent, is there":         {table.OpAbsent("a/1"), api.Exists},
		"absent prefix":            {table.OpAbsentPrefix("b/"), ""},
		"absent prefix, one there": {table.OpAbsentPrefix("a/"), api.Exists},
		"unchanged":                {table.OpUnchanged(rec), ""},
		"unchanged, changed":       {table.OpUnchanged(stale), api.Conflict},
		"update, gone":             {table.OpUpdate(store.Record[int]{Key: "b", Revision: 1}), api.NotFound},
		"delete, gone":             {table.OpDeleteKey("b"), api.NotFound},
		"no key":                   {table.OpPut("", 1), api.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Txn(t.Context(), test.op, table.OpPut("c", 1))
			wantKind(t, err, test.want)
		})
	}
}

func TestOldRecordsAreUpgraded(t *testing.T) {
	type v1 struct{ Memory string }
	type v3 struct{ MemoryBytes int64 }
	s := opened(t)
	if _, err := store.NewTable[v1](s, "ve", 1).Create(t.Context(), "c1", v1{"2"}); err != nil {
		t.Fatal(err)
	}
	table := store.NewTable[v3](s, "ve", 3,
		func(old json.RawMessage) (json.RawMessage, error) {
			return json.RawMessage(strings.ReplaceAll(string(old), `"2"`, `2`)), nil
		},
		func(old json.RawMessage) (json.RawMessage, error) {
			return json.RawMessage(strings.ReplaceAll(string(old), `Memory`, `MemoryBytes`)), nil
		})
	if rec, err := table.Get(t.Context(), "c1"); err != nil || rec.Value.MemoryBytes != 2 {
		t.Errorf("upgraded record is %+v, %v", rec, err)
	}
	failing := store.NewTable[v3](s, "ve", 2, func(json.RawMessage) (json.RawMessage, error) { return nil, errors.New("no") })
	if _, err := failing.Get(t.Context(), "c1"); err == nil || !strings.Contains(err.Error(), "from version 1: no") {
		t.Errorf("error of a failed upgrade is %v", err)
	}
}

func TestNewerRecordIsRefused(t *testing.T) {
	s := opened(t)
	same := func(old json.RawMessage) (json.RawMessage, error) { return old, nil }
	if _, err := store.NewTable[ve](s, "ve", 2, same).Create(t.Context(), "c1", ve{}); err != nil {
		t.Fatal(err)
	}
	old := store.NewTable[ve](s, "ve", 1)
	_, err := old.Get(t.Context(), "c1")
	wantKind(t, err, api.Unsupported)
	if want := `read ve "c1": it has version 2 and this version of polder knows up to 1: use the newer version that wrote it`; err == nil || err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	_, err = old.List(t.Context())
	wantKind(t, err, api.Unsupported)
}

func TestTooLargeRecordIsRefused(t *testing.T) {
	table := store.NewTable[string](opened(t), "text", 1)
	_, err := table.Put(t.Context(), "large", strings.Repeat("x", 5<<20))
	wantKind(t, err, api.Invalid)
}

func TestLeaseEndsWithItsRecords(t *testing.T) {
	s := opened(t)
	table := store.NewTable[ve](s, "host", 1)
	lease, err := s.Lease(t.Context(), 5e9)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended, err := lease.KeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := table.Create(t.Context(), "h1", ve{}, store.WithLease(lease))
	if err != nil {
		t.Fatal(err)
	}
	changes := table.Watch(t.Context(), rec.Revision+1)
	if err := lease.Revoke(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := <-changes; c.Key != "h1" || c.Value != nil || c.Prev == nil {
		t.Errorf("change is %+v, want the deletion of h1", c)
	}
	cancel()
	<-ended
}
