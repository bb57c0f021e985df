package daemon

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"polder/api"
)

// front keeps the API's socket while what is behind it is taken down and put up again: whoever asks meanwhile waits, and is told
// after a while what for.
type front struct {
	net.Listener
	conns chan net.Conn
	done  chan struct{} // closed when Listener accepts no more
	// patience is how long a request waits for who answers it.
	patience time.Duration

	mu  sync.Mutex // guards why
	why error      // nobody is behind it
}

// frontPatience is how long a request waits for the daemon, and then for the store; frontTimeout what it may take to tell it that
// there is no daemon.
const (
	frontPatience = 4 * time.Second
	frontTimeout  = 2 * time.Second
)

var errComingUp = api.Errorf(api.Unavailable, "this host is coming up: try again in a moment")

func newFront(l net.Listener) *front { return newFrontFor(l, frontPatience) }

func newFrontFor(l net.Listener, patience time.Duration) *front {
	f := &front{Listener: l, conns: make(chan net.Conn), done: make(chan struct{}), patience: patience, why: errComingUp}
	go func() {
		defer close(f.done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f.hand(conn)
		}
	}()
	return f
}

// hand gives a connection to who is behind the front, or turns it away.
func (f *front) hand(conn net.Conn) {
	timer := time.NewTimer(f.patience)
	defer timer.Stop()
	select {
	case f.conns <- conn:
	case <-f.done:
		conn.Close()
	case <-timer.C:
		defer conn.Close()
		f.mu.Lock()
		why := f.why
		f.mu.Unlock()
		_ = turnAway(conn, why) // the client went away: nobody left to tell
	}
}

// because says what requests wait for.
func (f *front) because(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.why = why
}

// turnAway answers the request on a connection with an error.
func turnAway(conn net.Conn, why error) error {
	if err := conn.SetDeadline(time.Now().Add(frontTimeout)); err != nil {
		return err
	}
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return err
	}
	problem := api.ProblemOf(why)
	text, err := json.Marshal(problem)
	if err != nil {
		return err
	}
	res := http.Response{
		StatusCode: problem.Status, ProtoMajor: 1, ProtoMinor: 1, Request: req, Close: true, ContentLength: int64(len(text)),
		Header: http.Header{"Content-Type": {"application/problem+json"}}, Body: io.NopCloser(bytes.NewReader(text)),
	}
	return res.Write(conn)
}

// door is a listener that can be closed without the front.
func (f *front) door() net.Listener { return &door{front: f, closed: make(chan struct{})} }

type door struct {
	*front
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	select {
	case <-d.closed: // before the other cases: a connection must not be taken by a server that is going
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-d.conns:
		return conn, nil
	case <-d.closed:
	case <-d.done:
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (d *door) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}
