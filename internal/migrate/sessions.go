package migrate

import (
	"context"
	"crypto/hmac"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"polder/api"
)

// firstWord is how long the target waits for the source's heartbeat to begin.
const firstWord = 30 * time.Second

// Sessions are the moves that come to this host. As an http.Handler it serves GET Prefix{id}/{stream...}, for other hosts only.
type Sessions struct {
	mu   sync.Mutex // guards open
	open map[string]*Session
}

// NewSessions makes a handler that expects nobody.
func NewSessions() *Sessions { return &Sessions{open: map[string]*Session{}} }

// Open makes the target's end of the move with that id: from now on its streams are let in. The same id again ends the
// session before. It ends by itself when the source does not begin within 30 seconds.
func (t *Sessions) Open(id string, secret []byte, peer, local netip.Addr) *Session {
	s := newSession(id, SessionOptions{Secret: secret, Peer: peer, Local: local})
	l := &lobby{session: s, rooms: map[string]chan *arrival{}, begun: make(chan struct{})}
	s.lobby, s.connect = l, l.meet
	s.release = func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.open[id] == s {
			delete(t.open, id)
		}
	}
	t.mu.Lock()
	before := t.open[id]
	t.open[id] = s
	t.mu.Unlock()
	if before != nil {
		before.Close()
	}
	s.spawn(l.awaitSource)
	return s
}

// Close ends all sessions.
func (t *Sessions) Close() {
	t.mu.Lock()
	var all []*Session
	for _, s := range t.open {
		all = append(all, s)
	}
	t.mu.Unlock()
	for _, s := range all {
		s.Close()
	}
}

// ServeHTTP lets a stream of an expected move in; it blocks until this end has asked for the stream too.
func (t *Sessions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := t.serve(w, r); err != nil {
		refuse(w, err)
	}
}

func (t *Sessions) serve(w http.ResponseWriter, r *http.Request) error {
	if err := upgradable(r); err != nil {
		return err
	}
	path, _ := strings.CutPrefix(r.URL.Path, Prefix)
	id, name, _ := strings.Cut(path, "/")
	t.mu.Lock()
	s := t.open[id]
	t.mu.Unlock()
	if s == nil || !hmac.Equal([]byte(r.Header.Get(proofHeader)), []byte(proof(s.secret, id, name))) {
		return api.Errorf(api.NotFound, "move %s is not expected here", id)
	}
	if name == heartbeat {
		return s.lobby.begin(w)
	}
	return s.lobby.visit(w, r, name)
}

// lobby is where streams wait until both ends have asked for them.
type lobby struct {
	session *Session
	begun   chan struct{} // closed when the heartbeat has begun

	mu    sync.Mutex // guards the rest
	rooms map[string]chan *arrival
	alive bool
}

// arrival is a request for a stream that is not answered yet.
type arrival struct {
	w    http.ResponseWriter
	done chan struct{} // closed when it has been answered

	mu        sync.Mutex // guards the rest
	taken     bool
	withdrawn bool
}

// room holds the one arrival of a name.
func (l *lobby) room(name string) chan *arrival {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := l.rooms[name]
	if room == nil {
		room = make(chan *arrival, 1)
		l.rooms[name] = room
	}
	return room
}

// visit waits, on the source's side of the door, until meet takes the request.
func (l *lobby) visit(w http.ResponseWriter, r *http.Request, name string) error {
	a := &arrival{w: w, done: make(chan struct{})}
	select {
	case l.room(name) <- a:
	default:
		return api.Errorf(api.Conflict, "stream %q of move %s: it was asked for before", name, l.session.id)
	}
	gone := error(nil)
	select {
	case <-a.done:
		return nil
	case <-r.Context().Done():
		gone = api.Errorf(api.Cancelled, "stream %q: the other end went away", name)
	case <-l.session.Done():
		gone = l.session.Err()
	}
	a.mu.Lock()
	a.withdrawn = !a.taken
	a.mu.Unlock()
	if a.withdrawn {
		return gone
	}
	<-a.done
	return nil
}

// meet waits, on this side, for the source's request; it is how a target's session connects.
func (l *lobby) meet(ctx context.Context, name string) (net.Conn, error) {
	room := l.room(name)
	for {
		var a *arrival
		select {
		case a = <-room:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		a.mu.Lock()
		a.taken = !a.withdrawn
		a.mu.Unlock()
		if !a.taken {
			continue
		}
		conn, err := accept(a.w)
		close(a.done)
		if err == nil || errors.As(err, new(*api.Error)) {
			return conn, err
		}
		// It went away at this very moment.
	}
}

// begin takes the heartbeat's connection.
func (l *lobby) begin(w http.ResponseWriter) error {
	l.mu.Lock()
	again := l.alive
	l.alive = true
	l.mu.Unlock()
	if again {
		return api.Errorf(api.Conflict, "move %s has a heartbeat already", l.session.id)
	}
	conn, err := accept(w)
	if err != nil {
		return nil //nolint:nilerr // the connection is gone, so nobody can be told
	}
	close(l.begun)
	if !l.session.spawn(func() { l.session.beat(conn) }) {
		conn.Close()
	}
	return nil
}

// awaitSource ends the session of a source that never comes.
func (l *lobby) awaitSource() {
	patience := time.NewTimer(firstWord)
	defer patience.Stop()
	select {
	case <-l.begun:
	case <-l.session.Done():
	case <-patience.C:
		l.session.fail(api.Errorf(api.Unavailable, "move %s: its source did not begin within %v", l.session.id, firstWord))
	}
}
