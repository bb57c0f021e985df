package store_test

import (
	"os"
	"testing"

	"polder/api"
	"polder/internal/store"
)

type ve struct {
	Name  string
	State string
}

func open(t testing.TB, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// externalEtcd names the endpoint of an etcd; the tests of records and watches use it then, and empty it. It has no other users.
const externalEtcd = "POLDER_TEST_EXTERNAL_ETCD"

func opened(t testing.TB) *store.Store {
	t.Helper()
	var s *store.Store
	if endpoint := os.Getenv(externalEtcd); endpoint != "" {
		var err error
		if s, err = store.Open(t.Context(), store.Options{Endpoints: []string{endpoint}}); err != nil {
			t.Fatal(err)
		}
		store.Clear(t, s)
	} else {
		s = open(t, t.TempDir())
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func wantKind(t *testing.T, err error, want api.Kind) {
	t.Helper()
	if api.KindOf(err) != want {
		t.Errorf("error %v has kind %q, want %q", err, api.KindOf(err), want)
	}
}

func TestReopenKeepsRecords(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	rec, err := store.NewTable[ve](first, "ve", 1).Create(t.Context(), "c1", ve{Name: "c1", State: "running"})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir)
	defer second.Close()
	got, err := store.NewTable[ve](second, "ve", 1).Get(t.Context(), "c1")
	if err != nil || got != rec {
		t.Errorf("after reopening: %v, %v; want %v", got, err, rec)
	}
}
