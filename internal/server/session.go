package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"polder/api"
	"polder/internal/model"
)

const (
	// maxMessage bounds a message from a client; one that sends more is cut off.
	maxMessage = 256 << 10
	// chunk is the most output that goes into one message.
	chunk = 64 << 10
	// pendingSignals that a command has not yet taken; more are dropped.
	pendingSignals = 16
)

// session describes a route that becomes a WebSocket.
func (s *Server) session(verb, summary string) huma.Operation {
	op := s.operation(http.MethodGet, "/ves/{name}/"+verb, verb, tagVE, summary)
	op.DefaultStatus = http.StatusSwitchingProtocols
	op.Description = "A WebSocket of binary messages. The first byte says what the rest is: 0 standard input (empty: its end), " +
		"1 standard output, 2 standard error, 3 a control message in JSON: `{\"start\":{…}}` first, then `resize`, `signal`; " +
		"the server sends `stdin_read`, and `exit` or `error` last. At most 1 MiB of input may be sent ahead of `stdin_read`."
	op.Parameters = []*huma.Param{pathParam("name", "name of the VE")}
	return op
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	s.stream(w, r, func(ctx context.Context, req api.ExecRequest, streams model.Streams) (*int, error) {
		if len(req.Command) == 0 {
			return nil, api.Errorf(api.Invalid, "exec in %q: no command was given", r.PathValue("name"))
		}
		code, err := s.backend.Exec(ctx, r.PathValue("name"), req, streams)
		return &code, err
	})
}

func (s *Server) console(w http.ResponseWriter, r *http.Request) {
	s.stream(w, r, func(ctx context.Context, _ api.ExecRequest, streams model.Streams) (*int, error) {
		return nil, s.backend.Console(ctx, r.PathValue("name"), streams)
	})
}

// stream turns the request into a session, runs it and sends how it ended.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, run func(context.Context, api.ExecRequest, model.Streams) (*int, error)) {
	s.streams.Add(1) // before the connection leaves http.Server's sight
	defer s.streams.Done()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow() //nolint:errcheck // after an orderly close it only says that it is closed
	conn.SetReadLimit(maxMessage)
	// The connection outlives the command's context, so that the last message still goes out.
	ctx, hangUp := context.WithCancel(r.Context())
	defer hangUp()
	commandCtx, cancel := s.streamContext(r)
	defer cancel()
	t := &sessionStream{conn: conn, resize: make(chan api.Resize, 1), signals: make(chan string, pendingSignals)}
	t.input = newInput(func(total int64) { t.control(ctx, api.StreamMessage{StdinRead: total}) })
	req, err := t.begin(ctx)
	if err != nil {
		t.control(ctx, api.StreamMessage{Error: api.ProblemOf(err)})
		conn.Close(websocket.StatusPolicyViolation, "protocol error") //nolint:errcheck // best effort
		return
	}
	// A backend that only waits for input learns of the end by it.
	defer context.AfterFunc(commandCtx, func() { t.input.fail(api.Errorf(api.Cancelled, "the session has ended")) })()
	received := make(chan struct{})
	go func() {
		defer close(received)
		t.receive(ctx)
		cancel() // the client is gone
	}()
	code, err := run(commandCtx, req, model.Streams{
		Stdin:   t.input,
		Stdout:  &output{ctx, conn, api.StreamStdout},
		Stderr:  &output{ctx, conn, api.StreamStderr},
		Resize:  t.resize,
		Signals: t.signals,
	})
	t.finish(s.ended(err), code)
	hangUp()
	<-received
}

// ended is err, or when the server is shutting down, that.
func (s *Server) ended(err error) error {
	select {
	case <-s.closing:
		return api.Errorf(api.Unavailable, "the session was cut off: polder serve is shutting down")
	default:
		return err
	}
}

// sessionStream is one end of a WebSocket as api/exec.go describes it.
type sessionStream struct {
	conn    *websocket.Conn
	input   *input
	resize  chan api.Resize // holds the newest size only
	signals chan string
}

// begin reads the first message.
func (t *sessionStream) begin(ctx context.Context) (api.ExecRequest, error) {
	kind, data, err := t.read(ctx)
	if err != nil {
		return api.ExecRequest{}, err
	}
	var m api.StreamMessage
	if kind != api.StreamControl || json.Unmarshal(data, &m) != nil || m.Start == nil {
		return api.ExecRequest{}, api.Errorf(api.Invalid, "session: the first message must be start")
	}
	if m.Start.Rows > 0 && m.Start.Cols > 0 {
		t.resize <- api.Resize{Rows: m.Start.Rows, Cols: m.Start.Cols}
	}
	return *m.Start, nil
}

// read takes one message; its content is valid until the next.
func (t *sessionStream) read(ctx context.Context) (byte, []byte, error) {
	kind, data, err := t.conn.Read(ctx)
	if err != nil {
		return 0, nil, api.Errorf(api.Unavailable, "session: %w", err)
	}
	if kind != websocket.MessageBinary || len(data) == 0 {
		return 0, nil, api.Errorf(api.Invalid, "session: want binary messages of at least one byte")
	}
	return data[0], data[1:], nil
}

// receive takes messages until the client goes away or breaks the rules.
func (t *sessionStream) receive(ctx context.Context) {
	defer t.input.fail(api.Errorf(api.Cancelled, "the client went away"))
	for {
		kind, data, err := t.read(ctx)
		if err == nil {
			err = t.take(kind, data)
		}
		if err != nil {
			if api.KindOf(err) == api.Invalid {
				t.control(ctx, api.StreamMessage{Error: api.ProblemOf(err)})
			}
			return
		}
	}
}

func (t *sessionStream) take(kind byte, data []byte) error {
	switch kind {
	case api.StreamStdin:
		return t.input.add(data)
	case api.StreamControl:
		var m api.StreamMessage
		if err := json.Unmarshal(data, &m); err != nil {
			return api.Errorf(api.Invalid, "session: malformed control message: %w", err)
		}
		switch {
		case m.Resize != nil:
			t.setSize(*m.Resize)
		case m.Signal != "":
			select {
			case t.signals <- m.Signal:
			default:
			}
		}
		return nil
	}
	return api.Errorf(api.Invalid, "session: unknown message %d", kind)
}

// setSize replaces a size that nobody has taken yet. Only one goroutine calls it, so the channel has room after the drop.
func (t *sessionStream) setSize(size api.Resize) {
	select {
	case <-t.resize:
	default:
	}
	t.resize <- size
}

// control sends a control message; failing to only matters to a client that is gone.
func (t *sessionStream) control(ctx context.Context, m api.StreamMessage) {
	data, err := json.Marshal(m)
	if err != nil {
		return
	}
	t.conn.Write(ctx, websocket.MessageBinary, append([]byte{api.StreamControl}, data...)) //nolint:errcheck // see above
}

// finish sends the last message, also when the session's own context has ended.
func (t *sessionStream) finish(err error, code *int) {
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	switch {
	case err != nil:
		t.control(ctx, api.StreamMessage{Error: api.ProblemOf(err)})
	case code != nil:
		t.control(ctx, api.StreamMessage{Exit: code})
	default: // a console that was left
		t.control(ctx, api.StreamMessage{Exit: new(int)})
	}
	t.conn.Close(websocket.StatusNormalClosure, "") //nolint:errcheck // the client may be gone
}

// output sends what is written as messages of one kind.
type output struct {
	ctx  context.Context
	conn *websocket.Conn
	kind byte
}

func (o *output) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		part := p[sent:min(sent+chunk, len(p))]
		message := make([]byte, 1+len(part))
		message[0] = o.kind
		copy(message[1:], part)
		if err := o.conn.Write(o.ctx, websocket.MessageBinary, message); err != nil {
			return sent, err
		}
		sent += len(part)
	}
	return len(p), nil
}
