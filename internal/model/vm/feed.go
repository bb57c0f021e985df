package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// unread is how many pieces of input may wait inside for the command to read them.
const unread = 3

// feed sends the caller's input in numbered files. It returns when ctx ends, which is no error: the command has ended.
func (s *session) feed(ctx context.Context) error {
	// "r+": does not block, whether or not the script reads yet. It stays open for as long as the session: if it were closed before the script
	// begins to read, what was written would be gone.
	control, err := s.line.open(ctx, s.dir+"/control", "r+")
	if err != nil {
		return unlessEnded(ctx, err)
	}
	s.input = control
	in := &inbox{changed: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	go in.fill(ctx, s.streams.Stdin)
	for n := 1; ; n++ {
		data, more, err := in.take(ctx)
		if err != nil {
			return unlessEnded(ctx, err)
		}
		if !more {
			return unlessEnded(ctx, s.line.write(ctx, control, []byte("end\n")))
		}
		if err := s.sendPiece(ctx, control, n, data); err != nil {
			return unlessEnded(ctx, err)
		}
	}
}

// unlessEnded drops an error that came of the command's end.
func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *session) sendPiece(ctx context.Context, control int64, n int, data []byte) error {
	path := func(n int) string { return fmt.Sprintf("%s/in.%d", s.dir, n) }
	for wait := pollFirst; n > unread; wait = min(2*wait, pollMost) {
		// The piece is removed when it has been consumed.
		handle, err := s.line.open(ctx, path(n-unread), "r")
		if err != nil {
			if err := unlessRefused(err); err != nil {
				return err
			}
			break
		}
		if err := s.line.closeFile(ctx, handle); err != nil {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
	if err := s.writeFile(ctx, path(n), data); err != nil {
		return err
	}
	return s.line.write(ctx, control, fmt.Appendf(nil, "%d\n", n))
}

// writeFile writes a file inside.
func (s *session) writeFile(ctx context.Context, path string, data []byte) error {
	handle, err := s.line.open(ctx, path, "w")
	if err != nil {
		return err
	}
	err = s.line.write(ctx, handle, data)
	return errors.Join(err, s.line.closeFile(ctx, handle))
}

// inbox gathers input while a piece is on its way, so that many small reads make few pieces.
type inbox struct {
	mu      sync.Mutex // guards what follows
	data    []byte
	err     error         // why no more comes
	changed chan struct{} // holds a token when there may be something to take
	room    chan struct{} // holds a token when something was taken
}

// fill reads until the input ends. It may outlast the command by one read, which only its caller can cut short.
func (b *inbox) fill(ctx context.Context, from io.Reader) {
	buf := make([]byte, 128<<10)
	for {
		n, err := from.Read(buf)
		b.mu.Lock()
		b.data = append(b.data, buf[:n]...)
		b.err = err
		full := len(b.data) >= piece
		b.mu.Unlock()
		signal(b.changed)
		if err != nil {
			return
		}
		for full {
			select {
			case <-b.room:
			case <-ctx.Done():
				return
			}
			b.mu.Lock()
			full = len(b.data) >= piece
			b.mu.Unlock()
		}
	}
}

// take waits for input; more is false at its end.
func (b *inbox) take(ctx context.Context) (data []byte, more bool, err error) {
	for {
		b.mu.Lock()
		data, b.data = b.data, nil
		last := b.err
		b.mu.Unlock()
		signal(b.room)
		switch {
		case len(data) > 0:
			return data, true, nil
		case errors.Is(last, io.EOF):
			return nil, false, nil
		case last != nil:
			return nil, false, fmt.Errorf("read the input: %w", last)
		}
		select {
		case <-b.changed:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
