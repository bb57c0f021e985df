package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/server/servertest"
)

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "polder")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v; want 0660", info.Mode(), err)
	}
	accepted := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			conn.Close()
		}
		accepted <- err
	}()
	// A second server asks whether the first one lives, which takes a connection.
	if _, err := Listen(path, nil); api.KindOf(err) != api.Conflict {
		t.Errorf("second listener: %v, want a conflict", err)
	}
	if err := <-accepted; err != nil {
		t.Errorf("accept of our own connection: %v", err)
	}
	l.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there after Close: %v", err)
	}
}

func TestListenReplacesStaleSocketOnly(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	l.Close()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, nil); api.KindOf(err) != api.Precondition {
		t.Errorf("over a file: %v, want a precondition", err)
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Error("the file was touched")
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 120)), nil); api.KindOf(err) != api.Invalid {
		t.Errorf("over-long path: %v, want invalid", err)
	}
}

func TestAllowedPeers(t *testing.T) {
	g := &guarded{group: 4711}
	for _, c := range []struct {
		uid, gid uint32
		want     bool
	}{
		{0, 0, true},
		{uint32(os.Geteuid()), 12345, true},
		{54321, 54321, false},
		{54321, 4711, true},
	} {
		if got := g.allowed(&unix.Ucred{Uid: c.uid, Gid: c.gid}); got != c.want {
			t.Errorf("uid %d gid %d: %v, want %v", c.uid, c.gid, got, c.want)
		}
	}
	if (&guarded{group: -1}).allowed(&unix.Ucred{Uid: 54321, Gid: ^uint32(0)}) {
		t.Error("without a group a stranger is let in")
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- New(servertest.New(), Options{}).Serve(ctx, l) }()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := net.Dial("unix", path); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("dial after the end: %v", err)
	}
}
