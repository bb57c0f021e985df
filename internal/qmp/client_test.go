package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": ["oob"]}}` + "\r\n"

// peer is the other side of a connection, played by a test.
type peer struct {
	t    *testing.T
	conn *net.UnixConn
	r    *bufio.Reader
}

// listen serves one connection with play.
func listen(t *testing.T, play func(*peer)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		play(&peer{t, conn, bufio.NewReader(conn)})
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return path
}

func (p *peer) say(format string, args ...any) {
	if _, err := fmt.Fprintf(p.conn, format, args...); err != nil {
		p.t.Error(err)
	}
}

func (p *peer) hear() (command string, id uint64) {
	line, err := p.r.ReadBytes('\n')
	if err != nil {
		p.t.Errorf("peer: %v", err)
		return "", 0
	}
	var req struct {
		Execute string `json:"execute"`
		OOB     string `json:"exec-oob"`
		ID      uint64 `json:"id"`
	}
	if err := json.Unmarshal(line, &req); err != nil {
		p.t.Errorf("peer: %v: %q", err, line)
	}
	return req.Execute + req.OOB, req.ID
}

func (p *peer) greet() {
	p.say(greeting)
	if command, id := p.hear(); command != "qmp_capabilities" {
		p.t.Errorf("began with %q", command)
	} else {
		p.say(`{"return": {}, "id": %d}`+"\r\n", id)
	}
}

func connect(t *testing.T, play func(*peer)) *Client {
	t.Helper()
	c, err := Dial(t.Context(), listen(t, play))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestAnswersFindTheirCalls(t *testing.T) {
	c := connect(t, func(p *peer) {
		p.greet()
		_, first := p.hear()
		second, oob := p.hear()
		if second != "migrate-pause" {
			p.t.Errorf("out of band came %q", second)
		}
		p.say(`{"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 7}}` + "\r\n")
		p.say(`{"return": {"n": 2}, "id": %d}`+"\r\n", oob)
		p.say(`{"return": {"n": 1}, "id": %d}`+"\r\n", first)
		_, third := p.hear()
		p.say(`{"id": %d, "error": {"class": "GenericError", "desc": "no such thing"}}`+"\r\n", third)
	})
	type number struct {
		N int `json:"n"`
	}
	var first, second number
	done := make(chan error, 1)
	go func() { done <- c.Execute(t.Context(), "query-status", nil, &first) }()
	for { // the peer expects them in this order
		c.mu.Lock()
		n := c.last
		c.mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := c.ExecuteOOB(t.Context(), "migrate-pause", nil, &second); err != nil || second.N != 2 {
		t.Errorf("got %+v, %v", second, err)
	}
	if err := <-done; err != nil || first.N != 1 {
		t.Errorf("got %+v, %v", first, err)
	}
	if e := <-c.Events(); e.Name != "STOP" || !e.Time.Equal(time.Unix(5, 7000)) {
		t.Errorf("got %+v", e)
	}
	err := c.Execute(t.Context(), "x", nil, nil)
	if !IsClass(err, "GenericError") || err.Error() != "x: no such thing" {
		t.Errorf("got %v", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	c := connect(t, func(p *peer) {
		p.greet()
		_, late := p.hear()
		_, id := p.hear()
		p.say(`{"return": {}, "id": %d}`+"\r\n", late)
		p.say(`{"return": {}, "id": %d}`+"\r\n", id)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := c.Execute(t.Context(), "next", nil, nil); err != nil {
		t.Errorf("after a call that was given up: %v", err)
	}
}

func TestConnectionEndsCalls(t *testing.T) {
	c := connect(t, func(p *peer) {
		p.greet()
		p.hear()
	})
	if err := c.Execute(t.Context(), "quit", nil, nil); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	<-c.Done()
	if err := c.Execute(t.Context(), "more", nil, nil); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	if _, ok := <-c.Events(); ok {
		t.Error("events go on")
	}
}

func TestDialBoundsAForeignPeer(t *testing.T) {
	for name, play := range map[string]func(*peer){
		"garbage":     func(p *peer) { p.say("SSH-2.0-x\r\n") },
		"no greeting": func(p *peer) { p.say("{}\r\n") },
		"endless": func(p *peer) {
			junk := strings.Repeat("x", 1<<20)
			for range 64 {
				if _, err := io.WriteString(p.conn, junk); err != nil {
					return
				}
			}
			p.t.Error("64 MiB without an end were read")
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Dial(t.Context(), listen(t, play)); err == nil {
				t.Error("no error")
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		quiet := make(chan struct{})
		defer close(quiet)
		if _, err := Dial(ctx, listen(t, func(*peer) { <-quiet })); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestFilesTravel(t *testing.T) {
	c := connect(t, func(p *peer) {
		p.greet()
		buf, control := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4))
		n, controlled, _, _, err := p.conn.ReadMsgUnix(buf, control)
		if err != nil {
			p.t.Error(err)
			return
		}
		messages, err := syscall.ParseSocketControlMessage(control[:controlled])
		if err != nil || len(messages) != 1 {
			p.t.Errorf("%d control messages, %v", len(messages), err)
			return
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			p.t.Errorf("%d descriptors, %v", len(fds), err)
			return
		}
		f := os.NewFile(uintptr(fds[0]), "got")
		defer f.Close()
		if text, err := io.ReadAll(f); err != nil || string(text) != "content" {
			p.t.Errorf("the descriptor reads %q, %v", text, err)
		}
		var req struct {
			Execute   string            `json:"execute"`
			Arguments map[string]string `json:"arguments"`
			ID        uint64            `json:"id"`
		}
		if err := json.Unmarshal(buf[:n], &req); err != nil || req.Execute != "getfd" || req.Arguments["fdname"] != "state" {
			p.t.Errorf("got %q, %v", buf[:n], err)
		}
		p.say(`{"return": {}, "id": %d}`+"\r\n", req.ID)
	})
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.GetFD(t.Context(), "state", f); err != nil {
		t.Fatal(err)
	}
}

func TestSlowReaderLosesTheOldestEvents(t *testing.T) {
	c := connect(t, func(p *peer) {
		p.greet()
		for i := range eventBacklog + 10 {
			p.say(`{"event": "E%d"}`+"\r\n", i)
		}
		_, id := p.hear()
		p.say(`{"return": {}, "id": %d}`+"\r\n", id)
	})
	if err := c.Execute(t.Context(), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	if e := <-c.Events(); e.Name != "E10" {
		t.Errorf("the oldest event kept is %s", e.Name)
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"return": {}, "id": 1}` + "\n"))
	f.Add([]byte(`{"error": {"class": "c", "desc": "d"}, "id": "x"}` + "\n"))
	f.Add([]byte(`{"event": "E", "timestamp": {"seconds": -1}}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(strings.NewReader(string(data)), 16)
		for {
			m, err := readMessage(r)
			if err != nil {
				return
			}
			var v any
			_ = m.answer("fuzz", &v)
		}
	})
}
