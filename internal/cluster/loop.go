package cluster

import (
	"context"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"polder/api"
)

// loop is a listener in this process: how a host reaches itself, with a peer port or without.
type loop struct {
	conns chan net.Conn
	done  chan struct{}
	close sync.Once
}

func newLoop() *loop { return &loop{conns: make(chan net.Conn), done: make(chan struct{})} }

// dial waits until the other end is accepted.
func (l *loop) dial(ctx context.Context) (net.Conn, error) {
	near, far, err := connPair()
	if err != nil {
		return nil, api.Errorf(api.Internal, "connect to this host: %w", err)
	}
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	near.Close()
	far.Close()
	return nil, api.Errorf(api.Unavailable, "connect to this host: %w", err)
}

// connPair is two ends of one connection, with half-close, as TCP has it.
func connPair() (near, far net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "loop")
		var bad error
		if conns[i], bad = net.FileConn(f); bad != nil {
			err = bad
		}
		f.Close()
	}
	return conns[0], conns[1], err
}

// Accept implements net.Listener.
func (l *loop) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return loopConn{conn}, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *loop) Close() error {
	l.close.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *loop) Addr() net.Addr { return &net.UnixAddr{Name: "itself", Net: "unix"} }

// loopConn marks a connection as coming from this host.
type loopConn struct{ net.Conn }
