package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/coder/websocket"

	"polder/api"
)

// maxMessage bounds a message from the server.
const maxMessage = 1 << 20

// Streams connects a command or a console to its user. All but Stdout may be nil; Stderr nil: as Stdout.
type Streams struct {
	// Stdin is read until its end, by a goroutine that may still sit in its last Read when the call has returned.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan api.Resize
	Signals        <-chan string // names: "INT", "TERM", …
}

// Exec runs a command in a running VE and blocks until it has ended. It returns the command's exit code (128 + n when
// signal n killed it). Cancelling ctx, or an error of one of the streams, kills the command.
func (c *Client) Exec(ctx context.Context, name string, req api.ExecRequest, s Streams) (int, error) {
	return c.session(ctx, vePath(name)+"/exec", req, s)
}

// Console attaches to a VE's console until ctx is done, stdin returns an error other than io.EOF, or the console goes
// away. size is the window's, zero where there is none.
func (c *Client) Console(ctx context.Context, name string, size api.Resize, s Streams) error {
	_, err := c.session(ctx, vePath(name)+"/console", api.ExecRequest{Rows: size.Rows, Cols: size.Cols, TTY: true}, s)
	return err
}

func (c *Client) session(ctx context.Context, path string, req api.ExecRequest, s Streams) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, res, err := websocket.Dial(ctx, c.base+path, &websocket.DialOptions{HTTPClient: c.http}) //nolint:bodyclose // by its documentation there is nothing to close
	if err != nil {
		if res != nil && res.StatusCode != http.StatusSwitchingProtocols && res.StatusCode >= 400 {
			return 0, Problem(res)
		}
		return 0, c.failed(ctx, err)
	}
	defer conn.CloseNow() //nolint:errcheck // after an orderly close it only says that it is closed
	conn.SetReadLimit(maxMessage)
	t := &stream{conn: conn, streams: s, room: api.StreamWindow}
	t.acked = sync.NewCond(&t.mu)
	defer t.stop()
	if err := t.control(ctx, api.StreamMessage{Start: &req}); err != nil {
		return 0, c.failed(ctx, err)
	}
	if s.Stdin != nil {
		go func() {
			if t.sendInput(ctx) != nil {
				cancel()
			}
		}()
	} else if err := t.send(ctx, api.StreamStdin, nil); err != nil {
		return 0, c.failed(ctx, err)
	}
	go t.sendControls(ctx)
	code, err := t.receive(ctx)
	if err != nil {
		t.mu.Lock()
		broken := t.inputErr
		t.mu.Unlock()
		if broken != nil {
			return 0, api.Errorf(api.Internal, "read input: %w", broken)
		}
		return 0, c.failed(ctx, err)
	}
	conn.Close(websocket.StatusNormalClosure, "") //nolint:errcheck // all has been said
	return code, nil
}

// stream is the client's end of a session; see api/exec.go.
type stream struct {
	conn    *websocket.Conn
	streams Streams

	mu      sync.Mutex // guards the rest
	acked   *sync.Cond
	sent    int64 // bytes of input
	room    int64 // sent may grow up to this
	stopped bool
	// inputErr is why stdin could not be read to its end.
	inputErr error
}

// stop ends a wait for room.
func (t *stream) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	t.acked.Broadcast()
}

// sendInput copies stdin within the window that the server grants. Only an error of stdin itself is returned: one of
// the connection is seen by receive.
func (t *stream) sendInput(ctx context.Context) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := t.streams.Stdin.Read(buf)
		if n > 0 && (!t.reserve(int64(n)) || t.send(ctx, api.StreamStdin, buf[:n]) != nil) {
			return nil
		}
		if errors.Is(err, io.EOF) {
			t.send(ctx, api.StreamStdin, nil) //nolint:errcheck // see above
			return nil
		}
		if err != nil {
			t.mu.Lock()
			t.inputErr = err
			t.mu.Unlock()
			return err
		}
	}
}

// reserve waits until n more bytes may be sent; false: the session is over.
func (t *stream) reserve(n int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.sent+n > t.room && !t.stopped {
		t.acked.Wait()
	}
	t.sent += n
	return !t.stopped
}

func (t *stream) sendControls(ctx context.Context) {
	for {
		var m api.StreamMessage
		select {
		case <-ctx.Done():
			return
		case size := <-t.streams.Resize:
			m.Resize = &size
		case m.Signal = <-t.streams.Signals:
		}
		if t.control(ctx, m) != nil {
			return
		}
	}
}

func (t *stream) control(ctx context.Context, m api.StreamMessage) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return t.send(ctx, api.StreamControl, data)
}

func (t *stream) send(ctx context.Context, kind byte, data []byte) error {
	message := make([]byte, 1+len(data))
	message[0] = kind
	copy(message[1:], data)
	return t.conn.Write(ctx, websocket.MessageBinary, message)
}

// receive passes output on until the server says how it ended.
func (t *stream) receive(ctx context.Context) (int, error) {
	for {
		kind, data, err := t.conn.Read(ctx)
		if err != nil {
			return 0, err
		}
		if kind != websocket.MessageBinary {
			return 0, api.Errorf(api.Internal, "session: the server sent a text message; is it another version of polder?")
		}
		code, done, err := t.take(data)
		if done || err != nil {
			return code, err
		}
	}
}

// take handles one message; done: it was the last.
func (t *stream) take(message []byte) (code int, done bool, err error) {
	if len(message) == 0 {
		return 0, false, api.Errorf(api.Internal, "session: the server sent an empty message")
	}
	kind, data := message[0], message[1:]
	switch kind {
	case api.StreamStdout:
		_, err = t.streams.Stdout.Write(data)
	case api.StreamStderr:
		w := t.streams.Stderr
		if w == nil {
			w = t.streams.Stdout
		}
		_, err = w.Write(data)
	case api.StreamControl:
		return t.takeControl(data)
	default:
		err = api.Errorf(api.Internal, "session: the server sent a message of unknown type %d; is it another version of polder?", kind)
	}
	if err != nil && api.KindOf(err) == api.Internal {
		err = &api.Error{Kind: api.Internal, Text: err.Error(), Err: err} // of the user's stream, not of the connection
	}
	return 0, false, err
}

func (t *stream) takeControl(data []byte) (code int, done bool, err error) {
	var m api.StreamMessage
	if err := json.Unmarshal(data, &m); err != nil {
		return 0, false, api.Errorf(api.Internal, "session: malformed message from the server: %w", err)
	}
	switch {
	case m.Error != nil:
		return 0, true, m.Error.Err()
	case m.Exit != nil:
		return *m.Exit, true, nil
	case m.StdinRead > 0:
		t.mu.Lock()
		t.room = max(t.room, m.StdinRead+api.StreamWindow)
		t.acked.Broadcast()
		t.mu.Unlock()
	}
	return 0, false, nil
}
