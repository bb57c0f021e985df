package client

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"polder/api"
)

func TestReadEvents(t *testing.T) {
	var got []string
	err := readEvents(strings.NewReader(": hello\n\nevent: operation\ndata: {\"a\":1}\n\n:\n\nid: 7\ndata:one\ndata: two\r\n\r\ndata: cut off"), func(e sseEvent) error {
		got = append(got, e.name+"|"+string(e.data))
		return nil
	})
	want := []string{`operation|{"a":1}`, "|one\ntwo"}
	if err != nil || strings.Join(got, ";") != strings.Join(want, ";") {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	stop := errors.New("stop")
	if err := readEvents(strings.NewReader("data: 1\n\ndata: 2\n\n"), func(sseEvent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want the callback's error", err)
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("event: x\nid: 1\ndata: {}\n\n"))
	f.Add([]byte("data\n\ndata:\ndata:\n\n\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		readEvents(bytes.NewReader(text), func(e sseEvent) error { //nolint:errcheck // any answer will do but a panic
			if e.data == nil {
				t.Fatal("an event without data")
			}
			return nil
		})
	})
}

// FuzzTake feeds a session what a server of another kind might send.
func FuzzTake(f *testing.F) {
	f.Add([]byte{api.StreamStdout, 'x'})
	f.Add(append([]byte{api.StreamControl}, `{"exit":3}`...))
	f.Add(append([]byte{api.StreamControl}, `{"error":{"kind":"conflict"}}`...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, message []byte) {
		var out bytes.Buffer
		s := &stream{streams: Streams{Stdout: &out}, room: api.StreamWindow}
		s.acked = sync.NewCond(&s.mu)
		s.take(message) //nolint:errcheck // any answer will do but a panic
		if s.room < api.StreamWindow {
			t.Fatal("the window shrank")
		}
	})
}
