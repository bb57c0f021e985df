package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"

	"polder/internal/model"
)

// Console attaches to the VE's serial port. All that are attached see the same, and each may type. QEMU writes the log by
// itself, whether or not anybody is attached.
func (m *Model) Console(ctx context.Context, ve model.Spec, streams model.Streams) error {
	if pid, err := holder(ve); err != nil {
		return fmt.Errorf("console of vm %q: %w", ve.Name, err)
	} else if pid == 0 {
		return notRunning(ve)
	}
	f := &m.attached(ve).console
	v, err := f.attach(ctx)
	if err != nil {
		return fmt.Errorf("console of vm %q: %w", ve.Name, err)
	}
	defer f.detach(v)
	typed := make(chan error, 1)
	go func() {
		_, err := io.Copy(v.conn, streams.Stdin)
		typed <- err
	}()
	for {
		select {
		case data, ok := <-v.output:
			if !ok {
				return nil // the VE ended
			}
			if _, err := streams.Stdout.Write(data); err != nil {
				return err
			}
		case err := <-typed:
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// fanout shares QEMU's console socket, which takes one client, between viewers. It is connected while there are any.
type fanout struct {
	path string

	mu      sync.Mutex // guards what follows
	conn    net.Conn
	viewers []*viewer
}

// viewer is one that is attached.
type viewer struct {
	conn   net.Conn
	output chan []byte // closed when the console goes away
}

// viewerBacklog is how many pieces of output (of up to 4 KiB) wait for a slow viewer before it loses some: it must not
// hold up the others, nor the VE.
const viewerBacklog = 256

func (f *fanout) attach(ctx context.Context) (*viewer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", f.path)
		if err != nil {
			return nil, err
		}
		f.conn = conn
		go f.read(conn)
	}
	v := &viewer{conn: f.conn, output: make(chan []byte, viewerBacklog)}
	f.viewers = append(f.viewers, v)
	return v, nil
}

// detach ends the connection with its last viewer.
func (f *fanout) detach(v *viewer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.viewers = slices.DeleteFunc(f.viewers, func(other *viewer) bool { return other == v })
	if len(f.viewers) == 0 && f.conn == v.conn && f.conn != nil {
		_ = f.conn.Close()
		f.conn = nil
	}
}

func (f *fanout) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		_ = f.conn.Close()
	}
}

// read hands the output of one connection to its viewers until it ends.
func (f *fanout) read(conn net.Conn) {
	for {
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		f.mu.Lock()
		for _, v := range f.viewers {
			if v.conn != conn {
				continue
			}
			select {
			case v.output <- buf[:n]:
			default:
			}
			if err != nil {
				close(v.output)
			}
		}
		if err != nil {
			f.viewers = slices.DeleteFunc(f.viewers, func(v *viewer) bool { return v.conn == conn })
			if f.conn == conn {
				f.conn = nil
			}
			f.mu.Unlock()
			_ = conn.Close()
			return
		}
		f.mu.Unlock()
	}
}
