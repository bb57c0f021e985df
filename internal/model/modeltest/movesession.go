package modeltest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// link joins the two sessions of a move in this process: streams are socket pairs. After cut bytes that the source has
// written it breaks; cut 0: it holds.
type link struct {
	mu     sync.Mutex
	cut    int64
	passed int64
	broken bool
	waits  map[string]chan net.Conn
	all    []net.Conn
}

// session is one end of a link.
type session struct {
	*link
	source bool
}

func newSessions(cut int64) (here, there *session) {
	l := &link{cut: cut, waits: map[string]chan net.Conn{}}
	return &session{l, true}, &session{l, false}
}

// Stream implements model.Session.
func (s *session) Stream(ctx context.Context, name string) (model.Stream, error) {
	own, other := fmt.Sprint(name, s.source), fmt.Sprint(name, !s.source)
	s.mu.Lock()
	if s.broken {
		s.mu.Unlock()
		return nil, api.Errorf(api.Unavailable, "stream %s: the link is broken", name)
	}
	if waiting, ok := s.waits[other]; ok {
		delete(s.waits, other)
		s.mu.Unlock()
		ours, theirs, err := pair()
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.all = append(s.all, ours, theirs)
		s.mu.Unlock()
		waiting <- theirs
		return stream{ours, s}, nil
	}
	waiting := make(chan net.Conn, 1)
	s.waits[own] = waiting
	s.mu.Unlock()
	select {
	case conn := <-waiting:
		if conn == nil {
			return nil, api.Errorf(api.Unavailable, "stream %s: the link is broken", name)
		}
		return stream{conn.(*net.UnixConn), s}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func pair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "stream")
		conn, err := net.FileConn(file)
		_ = file.Close()
		if err != nil {
			return nil, nil, err
		}
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1], nil
}

// Peer implements model.Session.
func (s *session) Peer() netip.Addr { return netip.MustParseAddr("127.0.0.1") }

// Local implements model.Session.
func (s *session) Local() netip.Addr { return netip.MustParseAddr("127.0.0.1") }

// Secret implements model.Session.
func (s *session) Secret() []byte { return []byte("a secret of thirty-two bytes ...") }

// Count implements model.Session.
func (s *session) Count(n api.Bytes) { s.pass(int64(n)) }

func (s *session) pass(n int64) {
	s.mu.Lock()
	if s.source {
		s.passed += n
	}
	over := s.cut > 0 && s.passed > s.cut
	s.mu.Unlock()
	if over {
		s.close()
	}
}

// close breaks the link.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = true
	for _, conn := range l.all {
		_ = conn.Close()
	}
	for _, waiting := range l.waits {
		close(waiting)
	}
	clear(l.waits)
}

type stream struct {
	*net.UnixConn
	session *session
}

// Write implements net.Conn.
func (s stream) Write(p []byte) (int, error) {
	n, err := s.UnixConn.Write(p)
	s.session.pass(int64(n))
	return n, err
}
