package migrate

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// FuzzStream reads what another host may send: whatever it is, it is read to an end or refused, and only a last frame is an end.
func FuzzStream(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'h', 'i', 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 2, 'h'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, sent []byte) {
		s := newSession("op1", SessionOptions{})
		s.release = func() {}
		defer s.Close()
		stream := &stream{Conn: &fed{Reader: bytes.NewReader(sent)}, session: s}
		got, err := io.ReadAll(stream)
		if len(got)+header > len(sent) && len(got) > 0 {
			t.Fatalf("%d bytes of %d that were sent", len(got), len(sent))
		}
		ended := bytes.Contains(sent, make([]byte, header))
		if err == nil && !ended {
			t.Fatalf("%q was taken for a whole stream", sent)
		}
	})
}

// fed is a connection that has all its bytes already.
type fed struct {
	net.Conn
	*bytes.Reader
}

func (f *fed) Read(p []byte) (int, error) { return f.Reader.Read(p) }
