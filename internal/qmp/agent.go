package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// Agent is a connection to the guest agent of one VE, by the host's end of its virtio-serial port. The protocol has no ids:
// one call at a time, and a call that was cut off leaves the connection unusable (Broken). Not safe for concurrent use.
type Agent struct {
	conn   *net.UnixConn
	r      *bufio.Reader
	broken error
}

// DialAgent connects and synchronizes. It blocks until the agent answers or ctx is done: there is no telling an agent
// that is not running from one that is slow.
func DialAgent(ctx context.Context, path string) (*Agent, error) {
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to the guest agent: %w", err)
	}
	a := &Agent{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	if err := a.sync(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to the guest agent: %w", err)
	}
	return a, nil
}

// Close ends the connection.
func (a *Agent) Close() { _ = a.conn.Close() }

// Broken says that no call can succeed any more on this connection: close it and dial again.
func (a *Agent) Broken() bool { return a.broken != nil }

// Call runs a command and waits for its answer, decoded into result (nil: not wanted). A refusal is an *Error and leaves the
// connection usable.
func (a *Agent) Call(ctx context.Context, command string, arguments, result any) error {
	m, err := a.roundTrip(ctx, request{Execute: command, Arguments: arguments}, nil, func() (*message, error) { return readMessage(a.r) })
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return m.answer(command, result)
}

// Send runs a command that has no answer when it succeeds (guest-shutdown). The next call must be on a new connection.
func (a *Agent) Send(ctx context.Context, command string, arguments any) error {
	_, err := a.roundTrip(ctx, request{Execute: command, Arguments: arguments}, nil, func() (*message, error) { return nil, nil })
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	a.broken = fmt.Errorf("%s was sent", command)
	return nil
}

// sync throws away what is left of earlier conversations: 0xFF resets the agent's parser, and its answer to us follows the
// first 0xFF that it sends with our id.
func (a *Agent) sync(ctx context.Context) error {
	id := rand.Int64N(1 << 52)
	req := request{Execute: "guest-sync-delimited", Arguments: map[string]any{"id": id}}
	_, err := a.roundTrip(ctx, req, []byte{0xFF}, func() (*message, error) {
		for {
			if err := a.skipDelimiter(); err != nil {
				return nil, err
			}
			m, err := readMessage(a.r)
			if err != nil {
				return nil, err
			}
			var got int64
			if json.Unmarshal(m.Return, &got) == nil && got == id {
				return m, nil
			}
		}
	})
	return err
}

func (a *Agent) skipDelimiter() error {
	for {
		if b, err := a.r.ReadByte(); err != nil || b == 0xFF {
			return err
		}
	}
}

func (a *Agent) roundTrip(ctx context.Context, req request, prefix []byte, read func() (*message, error)) (m *message, err error) {
	if a.broken != nil {
		return nil, a.broken
	}
	data, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = a.conn.SetDeadline(time.Unix(1, 0)) })
	if _, err = a.conn.Write(append(append(prefix, data...), '\n')); err == nil {
		m, err = read()
	}
	if !stop() {
		err = fmt.Errorf("the guest agent does not answer: %w", ctx.Err())
	}
	if err != nil {
		a.broken = err
	}
	return m, err
}
