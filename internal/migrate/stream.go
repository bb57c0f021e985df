package migrate

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

const (
	// chunk is what is copied at once, and the most that is in one frame.
	chunk = 256 << 10
	// smallWrite goes into one piece with its header; more is not worth the copy.
	smallWrite = 16 << 10
	header     = 4
	// pipeRoom is what a tool may write ahead into its end of a socket pair.
	pipeRoom = 4 << 20
)

// stream is one connection of a session; it implements model.Stream.
//
// What is sent is cut into frames: the length in 4 bytes, big-endian, and that many bytes. Length 0 is the end. So a stream
// whose sender was killed is not taken for one that was ended, which TLS as most implement it can't tell.
type stream struct {
	net.Conn
	session *Session

	reading sync.Mutex // guards the next two
	left    int        // of the frame that is being read
	ended   bool       // the other end has sent its last frame

	writing sync.Mutex // guards said, and the order of frames
	said    bool       // this end has sent its last frame

	once sync.Once
	pair *os.File // the near end of File's socket pair; guarded by session.mu
}

// Read implements net.Conn.
func (t *stream) Read(p []byte) (int, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	if t.left == 0 && !t.ended && len(p) > 0 {
		var length [header]byte
		if _, err := io.ReadFull(t.Conn, length[:]); err != nil {
			return 0, t.explain(err)
		}
		n := binary.BigEndian.Uint32(length[:])
		if n > chunk {
			return 0, api.Errorf(api.Internal, "stream of move %s: a frame of %d bytes; is the other host another version of polder?", t.session.id, n)
		}
		t.left, t.ended = int(n), n == 0
	}
	if t.ended {
		return 0, io.EOF
	}
	n, err := t.Conn.Read(p[:min(len(p), t.left)])
	t.left -= n
	t.session.Count(api.Bytes(n))
	return n, t.explain(err)
}

// Write implements net.Conn. It blocks until the session's bandwidth allows for all of p.
func (t *stream) Write(p []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	small := make([]byte, header, header+min(len(p), smallWrite))
	sent := 0
	for sent < len(p) {
		part := p[sent:min(sent+chunk, len(p))]
		var err error
		if len(part) <= smallWrite {
			err = t.frame(append(small[:header], part...))
		} else {
			binary.BigEndian.PutUint32(small, uint32(len(part)))
			if err = t.allow(len(part)); err == nil {
				_, err = t.Conn.Write(small[:header])
			}
			if err == nil {
				_, err = t.Conn.Write(part)
			}
			t.counted(len(part), err)
		}
		if err != nil {
			return sent, t.explain(err)
		}
		sent += len(part)
	}
	return sent, nil
}

// frame sends what follows the room for the header; writing is held.
func (t *stream) frame(p []byte) error {
	n := len(p) - header
	binary.BigEndian.PutUint32(p, uint32(n))
	err := t.allow(n)
	if err == nil {
		_, err = t.Conn.Write(p)
	}
	t.counted(n, err)
	return err
}

// allow waits until n bytes may be sent.
func (t *stream) allow(n int) error {
	if t.said {
		return api.Errorf(api.Internal, "stream of move %s: written to after its end", t.session.id)
	}
	if t.session.limit == nil {
		return nil
	}
	return t.session.limit.WaitN(t.session.ctx, n)
}

func (t *stream) counted(n int, err error) {
	if err == nil {
		t.session.Count(api.Bytes(n))
	}
}

// ReadFrom implements io.ReaderFrom: io.Copy to a stream copies nothing twice.
func (t *stream) ReadFrom(r io.Reader) (int64, error) {
	buf := make([]byte, header+chunk)
	total := int64(0)
	for {
		n, err := r.Read(buf[header:])
		if n > 0 {
			t.writing.Lock()
			sendErr := t.frame(buf[:header+n])
			t.writing.Unlock()
			if sendErr != nil {
				return total, t.explain(sendErr)
			}
			total += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// WriteTo implements io.WriterTo, with larger pieces than io.Copy has.
func (t *stream) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{t}, make([]byte, chunk))
}

// explain says why a connection failed that was cut with the session, or by the other end.
func (t *stream) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case t.session.Err() != nil:
		return t.session.Err()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return api.Errorf(api.Unavailable, "stream of move %s: cut off by the other end: %w", t.session.id, io.ErrUnexpectedEOF)
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return api.Errorf(api.Unavailable, "stream of move %s: cut off by the other end: %w", t.session.id, err)
	}
	return err
}

// CloseWrite implements model.Stream.
func (t *stream) CloseWrite() error {
	t.writing.Lock()
	defer t.writing.Unlock()
	return t.explain(t.last())
}

// last sends the last frame; writing is held.
func (t *stream) last() error {
	if t.said {
		return nil
	}
	t.said = true
	_, err := t.Conn.Write(make([]byte, header))
	return err
}

// Close implements net.Conn. What was written is sent and ended in order, unless a Write is under way: that one is cut off.
func (t *stream) Close() error {
	var err error
	t.once.Do(func() {
		t.session.forget(t)
		if t.writing.TryLock() {
			t.SetWriteDeadline(time.Now().Add(Silence)) //nolint:errcheck // the write says so too
			t.last()                                    //nolint:errcheck // the other end may have closed first
			t.writing.Unlock()
		}
		err = t.Conn.Close()
	})
	return err
}

// cut ends the stream without a word to the other end: it must not take for whole what it got.
func (t *stream) cut() {
	t.once.Do(func() {
		raw := rawConn(t.Conn) // which says nothing when it is closed
		if tcp, ok := raw.(*net.TCPConn); ok {
			tcp.SetLinger(0) //nolint:errcheck // it is closed all the same
		}
		raw.Close()
	})
	t.session.mu.Lock()
	defer t.session.mu.Unlock()
	if t.pair != nil {
		t.pair.Close()
	}
}
