package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// eventBacklog is how many events wait for a reader before the oldest are dropped.
const eventBacklog = 64

// Client is a connection to one QEMU. Safe for concurrent use: calls overlap, and answers find their call by id.
type Client struct {
	conn   *net.UnixConn
	oob    bool
	events chan Event
	done   chan struct{} // closed when the connection has ended

	writing sync.Mutex // keeps messages whole

	mu      sync.Mutex // guards what follows
	last    uint64
	waiting map[uint64]chan *message
	err     error // why the connection ended
}

// Event is something QEMU tells unasked.
type Event struct {
	Name string // "SHUTDOWN", "JOB_STATUS_CHANGE", …
	Data json.RawMessage
	Time time.Time
}

// Dial connects to a QMP socket and negotiates. It blocks until QEMU answers or ctx is done; QEMU serves one client of a
// socket at a time.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("connect to qemu: %w", err)
	}
	return New(ctx, conn)
}

func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// New negotiates on a connection, which the client owns from now on, also when New fails.
func New(ctx context.Context, conn *net.UnixConn) (*Client, error) {
	c := &Client{
		conn: conn, waiting: map[uint64]chan *message{},
		events: make(chan Event, eventBacklog), done: make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(conn, 64<<10)
	greeting, err := readMessage(r)
	if err == nil && greeting.QMP == nil {
		err = errors.New("it did not greet as QMP does")
	}
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to qemu: %w", err)
	}
	c.oob = slices.Contains(greeting.QMP.Capabilities, "oob")
	go c.read(r)
	enable := []string{}
	if c.oob {
		enable = append(enable, "oob")
	}
	if err := c.Execute(ctx, "qmp_capabilities", map[string]any{"enable": enable}, nil); err != nil {
		c.Close()
		return nil, fmt.Errorf("connect to qemu: %w", err)
	}
	return c, nil
}

// Close ends the connection; QEMU runs on. Calls under way fail.
func (c *Client) Close() {
	_ = c.conn.Close()
	<-c.done
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Events gives what QEMU tells. A reader that is slower than 64 events loses the oldest. Closed with the connection.
func (c *Client) Events() <-chan Event { return c.events }

// Execute runs a command and waits for its answer, decoded into result (nil: not wanted). A refusal is an *Error. When ctx
// ends first, the command may still be carried out.
func (c *Client) Execute(ctx context.Context, command string, arguments, result any) error {
	return c.call(ctx, request{Execute: command, Arguments: arguments}, result, nil)
}

// ExecuteOOB is Execute for a command that QEMU carries out while another one blocks it (migrate-pause, migrate-recover, …).
func (c *Client) ExecuteOOB(ctx context.Context, command string, arguments, result any) error {
	if !c.oob {
		return fmt.Errorf("%s: this qemu has no out-of-band commands", command)
	}
	return c.call(ctx, request{OOB: command, Arguments: arguments}, result, nil)
}

// GetFD hands a descriptor to QEMU under a name, for arguments such as fd:NAME. The file stays the caller's.
func (c *Client) GetFD(ctx context.Context, name string, f *os.File) error {
	return c.call(ctx, request{Execute: "getfd", Arguments: map[string]any{"fdname": name}}, nil, f)
}

// AddFD adds a descriptor to QEMU's set of descriptors, which it opens as /dev/fdset/SET. The file stays the caller's.
func (c *Client) AddFD(ctx context.Context, set int, f *os.File) error {
	return c.call(ctx, request{Execute: "add-fd", Arguments: map[string]any{"fdset-id": set}}, nil, f)
}

func (c *Client) call(ctx context.Context, req request, result any, f *os.File) error {
	command := req.Execute + req.OOB
	answer, id, err := c.expect()
	if err == nil {
		defer c.forget(id)
		req.ID = &id
		err = c.send(ctx, req, f)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case m := <-answer:
		return m.answer(command, result)
	case <-ctx.Done():
		return fmt.Errorf("%s: qemu does not answer: %w", command, ctx.Err())
	case <-c.done:
	}
	select {
	case m := <-answer: // it came just before the end
		return m.answer(command, result)
	default:
		return fmt.Errorf("%s: %w", command, c.reason())
	}
}

func (c *Client) expect() (<-chan *message, uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, 0, c.err
	}
	c.last++
	answer := make(chan *message, 1)
	c.waiting[c.last] = answer
	return answer, c.last, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

func (c *Client) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// send writes one message. A write that ctx cuts off may leave half a message behind, so it ends the connection.
func (c *Client) send(ctx context.Context, req request, f *os.File) error {
	data, err := json.Marshal(req)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	data = append(data, '\n')
	if f == nil {
		_, err = c.conn.Write(data)
	} else {
		err = c.sendWith(data, f)
	}
	if err != nil {
		_ = c.conn.Close()
	}
	return err
}

// sendWith writes a message with a descriptor, which travels with its first byte.
func (c *Client) sendWith(data []byte, f *os.File) error {
	raw, err := f.SyscallConn() // not f.Fd, which would make the file block
	if err != nil {
		return err
	}
	var n int
	var sent error
	if err := raw.Control(func(fd uintptr) { n, _, sent = c.conn.WriteMsgUnix(data, syscall.UnixRights(int(fd)), nil) }); err != nil {
		return err
	}
	if sent == nil && n < len(data) {
		_, sent = c.conn.Write(data[n:])
	}
	return sent
}

// read hands out what QEMU sends until the connection ends.
func (c *Client) read(r *bufio.Reader) {
	var err error
	for {
		var m *message
		if m, err = readMessage(r); err != nil {
			break
		}
		if m.Event != "" {
			c.tell(Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
		} else if m.ID != nil {
			c.mu.Lock()
			answer := c.waiting[*m.ID]
			delete(c.waiting, *m.ID)
			c.mu.Unlock()
			if answer != nil {
				answer <- m
			}
		}
	}
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = fmt.Errorf("the connection to qemu ended: %w", err)
	c.mu.Unlock()
	close(c.done)
	close(c.events)
}

func (c *Client) tell(e Event) {
	for {
		select {
		case c.events <- e:
			return
		default:
		}
		select {
		case <-c.events:
		default:
		}
	}
}
