package store

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Both ends of a connection to the port get the limit; others are let alone.
func TestLimitLinks(t *testing.T) {
	ends := func() (port int, client, server net.Conn) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		return l.Addr().(*net.TCPAddr).Port, client, server
	}
	port, client, server := ends()
	_, other, _ := ends()
	known, err := limitLinks(port, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		conn net.Conn
		want int
	}{"client": {client, 5000}, "server": {server, 5000}, "other": {other, 0}} {
		if got := userTimeout(t, c.conn); got != c.want {
			t.Errorf("%s: user timeout %d, want %d", name, got, c.want)
		}
	}
	again, err := limitLinks(port, known)
	if err != nil || len(again) != len(known) {
		t.Errorf("%d sockets, then %d, %v", len(known), len(again), err)
	}
}

func userTimeout(t *testing.T, conn net.Conn) (value int) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		value, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return value
}
