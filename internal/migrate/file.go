package migrate

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"polder/api"
)

// File implements model.Stream. A stream that breaks looks to the tool like one that ends: the session says which it was.
func (t *stream) File() (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, api.Errorf(api.Internal, "socket pair for a stream: %w", err)
	}
	for _, fd := range fds {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, pipeRoom) != nil {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, pipeRoom) //nolint:errcheck // slower, not wrong
		}
	}
	unix.SetNonblock(fds[0], true) //nolint:errcheck // a socket can
	near, far := os.NewFile(uintptr(fds[0]), "stream"), os.NewFile(uintptr(fds[1]), "stream")
	t.session.mu.Lock()
	t.pair = near
	t.session.mu.Unlock()
	if !t.session.spawn(func() { t.join(near) }) {
		near.Close()
		far.Close()
		return nil, t.session.Err()
	}
	return far, nil
}

// join copies between the stream and the tool's socket until both have ended.
func (t *stream) join(near *os.File) {
	defer near.Close()
	defer t.Close()
	var back sync.WaitGroup
	defer back.Wait()
	back.Go(func() {
		if _, err := t.WriteTo(near); err != nil {
			// The tool went away, or the stream broke: neither has anything more to say to the other.
			near.Close()
			t.cut()
			return
		}
		shutWrite(near)
	})
	_, err := t.ReadFrom(near)
	if err == nil {
		err = t.CloseWrite()
	}
	if err != nil {
		t.cut()
	}
}

// shutWrite lets the tool read the end.
func shutWrite(near *os.File) {
	raw, err := near.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) }) //nolint:errcheck // it is closed soon anyway
}
