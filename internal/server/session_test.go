package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"polder/api"
)

func newSession() *sessionStream {
	return &sessionStream{
		input:   newInput(func(int64) {}),
		resize:  make(chan api.Resize, 1),
		signals: make(chan string, pendingSignals),
	}
}

func TestInputIsBounded(t *testing.T) {
	var acked int64
	in := newInput(func(total int64) { acked = total })
	block := bytes.Repeat([]byte("x"), api.StreamWindow/4)
	for range 4 {
		if err := in.add(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.add([]byte("x")); api.KindOf(err) != api.Invalid {
		t.Errorf("beyond the window: %v, want invalid", err)
	}
	if _, err := io.ReadFull(in, make([]byte, len(block))); err != nil || acked != int64(len(block)) {
		t.Errorf("after a quarter: acknowledged %d, %v", acked, err)
	}
	if err := in.add(block); err != nil {
		t.Errorf("after room was made: %v", err)
	}
	if err := in.add(nil); err != nil {
		t.Fatal(err)
	}
	if err := in.add([]byte("x")); api.KindOf(err) != api.Invalid {
		t.Errorf("after the end: %v, want invalid", err)
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) != 4*len(block) {
		t.Errorf("rest: %d bytes, %v", len(rest), err)
	}
}

func TestInputFailureWakesReader(t *testing.T) {
	in := newInput(func(int64) {})
	gone := errors.New("gone")
	read := make(chan error, 1)
	go func() {
		_, err := in.Read(make([]byte, 1))
		read <- err
	}()
	in.fail(gone)
	if err := <-read; !errors.Is(err, gone) {
		t.Errorf("read: %v, want %v", err, gone)
	}
}

func TestNewestSizeWins(t *testing.T) {
	s := newSession()
	for n := range uint16(5) {
		s.setSize(api.Resize{Rows: n + 1, Cols: 80})
	}
	if got := <-s.resize; got.Rows != 5 {
		t.Errorf("got %d rows, want the newest, 5", got.Rows)
	}
}

// FuzzTake feeds a session what a client might send: it must never panic, block or hold more than the window.
func FuzzTake(f *testing.F) {
	start, _ := json.Marshal(api.StreamMessage{Resize: &api.Resize{Rows: 1, Cols: 2}})
	f.Add(api.StreamControl, start, 3)
	f.Add(api.StreamControl, []byte(`{"signal":"INT"}`), 40)
	f.Add(api.StreamStdin, []byte("input"), 2)
	f.Add(api.StreamStdin, []byte{}, 2)
	f.Add(byte(9), []byte("?"), 1)
	f.Fuzz(func(t *testing.T, kind byte, data []byte, times int) {
		s := newSession()
		for range min(max(times, 0), 64) {
			err := s.take(kind, data)
			if err != nil && api.KindOf(err) != api.Invalid {
				t.Fatalf("error %v is no client's fault", err)
			}
		}
		if len(s.input.data) > api.StreamWindow {
			t.Fatalf("%d bytes are held", len(s.input.data))
		}
	})
}
