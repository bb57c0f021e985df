//go:build integration

package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/internal/model"
)

// eavesdrop is the target's end of a move that tells where QEMU listens.
type eavesdrop struct {
	*end
	ready func(ready)
}

func (e eavesdrop) Stream(ctx context.Context, name string) (model.Stream, error) {
	s, err := e.end.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	return eavesdropStream{s.(stream), e}, nil
}

type eavesdropStream struct {
	stream
	e eavesdrop
}

func (s eavesdropStream) Write(p []byte) (int, error) {
	var n note
	if strings.HasPrefix(string(p), `{"kind":"ready"`) && json.Unmarshal(bytes.TrimSpace(p), &n) == nil {
		s.e.ready(*n.Ready)
	}
	return s.stream.Write(p)
}

// Whoever has not the move's key gets neither at the disk nor at the memory, and does not disturb the move.
func TestStrangersAreRefused(t *testing.T) {
	here := bootSpec(t)
	started(t, New(Config{}), here)
	logged(t, here, "polder", 1)
	there := at(t, here)
	source, target := joined(t)
	received := make(chan error, 1)
	go func() {
		received <- New(Config{}).Receive(t.Context(), there, eavesdrop{target, func(r ready) {
			knockAtDisk(t, r.DiskPort)
			knockAtMemory(t, r.MemoryPort)
		}}, volumeOf(there))
	}()
	_, err := New(Config{}).Send(t.Context(), here, source, model.SendOptions{Mode: api.Live})
	if failed := <-received; err != nil || failed != nil {
		t.Errorf("send: %v, receive: %v", err, failed)
	}
	discard(t, there)
}

// knockAtDisk asks for the exports without TLS. The protocol: doc/proto.md of NetworkBlockDevice/nbd.
func knockAtDisk(t *testing.T, port string) {
	c := knock(t, port)
	defer c.Close()
	const optionMagic, list, tlsRequired = 0x49484156454F5054, 3, 1<<31 + 5
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(c, greeting); err != nil {
		t.Errorf("the disk's greeting: %v", err)
		return
	}
	ask := binary.BigEndian.AppendUint32(nil, 3)
	ask = binary.BigEndian.AppendUint64(ask, optionMagic)
	ask = binary.BigEndian.AppendUint64(ask, list<<32) // the option, no data
	if _, err := c.Write(ask); err != nil {
		t.Errorf("ask for the exports: %v", err)
	}
	reply := make([]byte, 20)
	if _, err := io.ReadFull(c, reply); err != nil {
		t.Errorf("the exports: %v", err)
	}
	if got := binary.BigEndian.Uint32(reply[12:]); got != tlsRequired {
		t.Errorf("asked for its exports without TLS, the disk's port answers %#x", got)
	}
}

// knockAtMemory begins a migration without TLS.
func knockAtMemory(t *testing.T, port string) {
	c := knock(t, port)
	defer c.Close()
	if _, err := c.Write(append([]byte("QEVM\x00\x00\x00\x03"), make([]byte, 64)...)); err != nil {
		t.Errorf("write to the memory's port: %v", err)
	}
	_, _ = io.Copy(io.Discard, c) // until it hangs up
}

func knock(t *testing.T, port string) net.Conn {
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Error(err)
		return nil
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}
