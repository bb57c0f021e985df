package container

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUnread(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	check := func(when string, want bool) {
		t.Helper()
		fd, found := unreadOf(os.Getpid(), map[string]bool{})
		if found != want || found && fd != pair[1] {
			t.Errorf("%s: %d, %v", when, fd, found)
		}
	}
	check("nothing was sent", false)
	if _, err := unix.Write(pair[0], []byte("x")); err != nil {
		t.Fatal(err)
	}
	check("nothing but bytes was sent", false)
	if err := unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	check("the sender is told", true)
	if _, err := unix.Read(pair[1], make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	check("it was read", false)
}
