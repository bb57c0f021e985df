package migrate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"

	"polder/api"
	"polder/internal/model"
)

// burst is the most that is sent at once where bandwidth is limited.
const burst = 256 << 10

// heartbeat is the name of the session's own stream.
const heartbeat = "~heartbeat"

// Session is one end of a move; it implements model.Session. It lasts until Close, or until the other end vanishes.
type Session struct {
	id      string
	secret  []byte
	peer    netip.Addr
	local   netip.Addr
	limit   *rate.Limiter // nil: none
	counted atomic.Int64

	// connect makes the connection of a stream.
	connect func(ctx context.Context, name string) (net.Conn, error)
	// release is called once by Close.
	release func()

	ctx context.Context // ends with the session; its cause says why
	end context.CancelCauseFunc
	// meeting ends with ctx, or when the other end says farewell: no stream begins any more, and those there are may go on.
	meeting context.Context
	part    context.CancelCauseFunc
	lobby   *lobby // of the target's end

	mu      sync.Mutex // guards the rest
	used    map[string]bool
	streams map[*stream]struct{}
	work    sync.WaitGroup // of goroutines; none is added once ctx is done
}

var _ model.Session = (*Session)(nil)

func newSession(id string, o SessionOptions) *Session {
	ctx, end := context.WithCancelCause(context.Background())
	meeting, part := context.WithCancelCause(ctx)
	s := &Session{
		id: id, secret: slices.Clone(o.Secret), peer: o.Peer, local: o.Local, ctx: ctx, end: end, meeting: meeting, part: part,
		used: map[string]bool{}, streams: map[*stream]struct{}{},
	}
	if o.Bandwidth > 0 {
		s.limit = rate.NewLimiter(rate.Limit(o.Bandwidth), burst)
	}
	return s
}

// Connect is the source's end of the move with that id. It returns at once and connects by and by: what fails is told by the
// first Stream.
func Connect(id string, dial Dial, o SessionOptions) *Session {
	s := newSession(id, o)
	s.connect = func(ctx context.Context, name string) (net.Conn, error) {
		return s.upgrade(ctx, dial, name)
	}
	s.release = func() {}
	s.spawn(s.beatAsSource)
	return s
}

// Stream implements model.Session.
func (s *Session) Stream(ctx context.Context, name string) (model.Stream, error) {
	if name == "" || name == heartbeat {
		return nil, api.Errorf(api.Internal, "open stream %q of move %s: no name for a stream", name, s.id)
	}
	s.mu.Lock()
	used := s.used[name]
	s.used[name] = true
	s.mu.Unlock()
	if used {
		return nil, api.Errorf(api.Internal, "open stream %q of move %s: the name was used before", name, s.id)
	}
	ctx, cancel := s.within(ctx)
	defer cancel()
	conn, err := s.connect(ctx, name)
	if err != nil {
		return nil, s.failed(ctx, "open stream "+name, err)
	}
	return s.adopt(conn)
}

// adopt makes a stream of a connection.
func (s *Session) adopt(conn net.Conn) (*stream, error) {
	t := &stream{Conn: conn, session: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		conn.Close()
		return nil, s.Err()
	}
	s.streams[t] = struct{}{}
	return t, nil
}

func (s *Session) forget(t *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, t)
}

// within is ctx, which also ends when no stream can begin any more.
func (s *Session) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.meeting, func() { cancel(context.Cause(s.meeting)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// failed says why something that waited within ctx came to nothing.
func (s *Session) failed(ctx context.Context, what string, err error) error {
	if s.meeting.Err() != nil {
		cause := context.Cause(s.meeting)
		return api.Errorf(api.KindOf(cause), "%s: %w", what, cause)
	}
	if ctx.Err() != nil {
		return &api.Error{Kind: api.Cancelled, Text: what + ": cancelled", Err: context.Cause(ctx)}
	}
	var known *api.Error
	if errors.As(err, &known) {
		return api.Errorf(known.Kind, "%s: %w", what, err)
	}
	return api.Errorf(api.Unavailable, "%s: %w", what, err)
}

// spawn runs do beside the session, which waits for it in Close.
func (s *Session) spawn(do func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.work.Go(do)
	return true
}

// Peer implements model.Session.
func (s *Session) Peer() netip.Addr { return s.peer }

// Local implements model.Session.
func (s *Session) Local() netip.Addr { return s.local }

// Secret implements model.Session.
func (s *Session) Secret() []byte { return slices.Clone(s.secret) }

// Count implements model.Session.
func (s *Session) Count(n api.Bytes) { s.counted.Add(int64(n)) }

// Transferred is how much went through the session, both ways, and beside it by tools.
func (s *Session) Transferred() api.Bytes { return api.Bytes(s.counted.Load()) }

// Done is closed when the session has ended: by Close, or because the other end vanished. See Err.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Err says why the session has ended; nil while it lasts.
func (s *Session) Err() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return context.Cause(s.ctx)
}

// Close cuts off all streams and waits until nothing of the session runs any more. What a tool has written to a File and the other
// end has not read is lost: close a session when both ends have said that they are through. Idempotent.
func (s *Session) Close() {
	s.fail(api.Errorf(api.Cancelled, "session of move %s: closed", s.id))
	s.work.Wait()
}

// fail ends the session.
func (s *Session) fail(cause error) {
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return
	}
	s.end(cause)
	open := s.streams
	s.streams = map[*stream]struct{}{}
	s.mu.Unlock()
	s.release()
	for t := range open {
		t.cut()
	}
}
