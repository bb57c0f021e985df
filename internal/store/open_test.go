package store_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"polder/api"
	"polder/internal/store"
)

func TestSecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	_, err := store.Open(t.Context(), store.Options{Dir: dir})
	wantKind(t, err, api.Conflict)
	if err == nil || !strings.Contains(err.Error(), "process ") {
		t.Errorf("error %v does not name the process", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).Close(); err != nil {
		t.Error(err)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	store.WriteFormat(t, s, "7")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // refusing must not leave it locked
		_, err := store.Open(t.Context(), store.Options{Dir: dir})
		wantKind(t, err, api.Unsupported)
		if want := "format 7 and this version of polder knows up to 1"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q in it", err, want)
		}
	}
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	if err := open(t, dir).Close(); err != nil {
		t.Error(err)
	}
}

func TestDamagedDatabaseIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dir, "etcd/member/snap/db")
	if err := os.WriteFile(db, []byte(strings.Repeat("damaged ", 8192)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(t.Context(), store.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	wantKind(t, err, api.Internal)
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v does not name the directory", err)
	}
}

func TestUseAfterCloseIsUnavailable(t *testing.T) {
	s := open(t, t.TempDir())
	table := store.NewTable[ve](s, "ve", 1)
	changes := table.Watch(context.Background(), 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if c, ok := <-changes; ok {
		t.Errorf("watch of a closed store reports %+v", c)
	}
	_, err := table.Get(t.Context(), "c1")
	wantKind(t, err, api.Unavailable)
	_, err = table.Put(t.Context(), "c1", ve{})
	wantKind(t, err, api.Unavailable)
	<-s.Failed()
	if s.Err() != nil {
		t.Errorf("a closed store has failed: %v", s.Err())
	}
}

func TestCancelledRequest(t *testing.T) {
	table := store.NewTable[ve](opened(t), "ve", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := table.Put(ctx, "c1", ve{})
	wantKind(t, err, api.Cancelled)
}

func TestUnreachableEndpoint(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = store.Open(ctx, store.Options{Endpoints: []string{"http://" + listener.Addr().String()}})
	wantKind(t, err, api.Unavailable)
}

func TestMemberListensNowhereAndLeaksNothing(t *testing.T) {
	before := sockets(t)
	leaks := goleak.IgnoreCurrent()
	s := open(t, t.TempDir())
	for socket := range sockets(t) {
		if !before[socket] {
			t.Errorf("the store opened %s", socket)
		}
	}
	for range store.NewTable[ve](s, "ve", 1).Watch(cancelled(t), 0) {
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	goleak.VerifyNone(t, leaks)
}

func cancelled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// sockets lists this process's sockets by inode.
func sockets(t *testing.T) map[string]bool {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, entry := range entries {
		if target, _ := os.Readlink("/proc/self/fd/" + entry.Name()); strings.HasPrefix(target, "socket:") {
			found[target] = true
		}
	}
	return found
}
