package modeltest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/api"
	"polder/internal/model"
)

func testExec(t *testing.T, w *world) {
	m := w.m.(model.Execer)
	if code, err := m.Exec(w.ctx(t), w.ve, api.ExecRequest{Command: []string{"true"}}, model.Streams{Stdout: io.Discard, Stderr: io.Discard}); err == nil {
		t.Fatalf("exec in a VE that does not run: exit code %d", code)
	} else if api.KindOf(err) != api.Precondition {
		t.Fatalf("exec in a VE that does not run: %v; want a precondition error", err)
	}
	w.start(t)
	for _, c := range []struct {
		name           string
		req            api.ExecRequest
		stdin          string
		code           int
		stdout, stderr string
	}{
		{name: "output", req: sh("echo out; echo err >&2"), stdout: "out\n", stderr: "err\n"},
		{name: "exit code", req: sh("exit 7"), code: 7},
		{name: "killed", req: sh("kill -KILL $$"), code: 128 + 9},
		{name: "input", req: api.ExecRequest{Command: []string{"cat"}}, stdin: "some text", stdout: "some text"},
		{name: "no input", req: api.ExecRequest{Command: []string{"cat"}}},
		{name: "environment", req: api.ExecRequest{Command: []string{"sh", "-c", `printf %s "$A"`}, Env: []string{"A=b c"}}, stdout: "b c"},
		{name: "directory", req: api.ExecRequest{Command: []string{"pwd"}, Dir: "/tmp"}, stdout: "/tmp\n"},
		{name: "mask", req: sh("umask"), stdout: "0022\n"},
		{name: "root", req: sh("id -u; id -g"), stdout: "0\n0\n"},
		{name: "user", req: api.ExecRequest{Command: []string{"sh", "-c", "id -u; id -g"}, User: "7:8"}, stdout: "7\n8\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code, err := m.Exec(w.ctx(t), w.ve, c.req, model.Streams{Stdin: strings.NewReader(c.stdin), Stdout: &stdout, Stderr: &stderr})
			w.must(t, "exec", err)
			if code != c.code || stdout.String() != c.stdout || stderr.String() != c.stderr {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q, %q", code, &stdout, &stderr, c.code, c.stdout, c.stderr)
			}
		})
	}
	t.Run("unknown command", func(t *testing.T) {
		code, err := m.Exec(w.ctx(t), w.ve, api.ExecRequest{Command: []string{"no-such-command"}}, model.Streams{Stdout: io.Discard, Stderr: io.Discard})
		if err == nil && code != 127 {
			t.Errorf("exit code %d; want an error or 127", code)
		}
	})
	t.Run("signal", func(t *testing.T) { testExecSignal(t, w, m) })
	t.Run("cancel", func(t *testing.T) { testExecCancel(t, w, m) })
	t.Run("tty", func(t *testing.T) { testExecTTY(t, w, m) })
}

func sh(script string) api.ExecRequest { return api.ExecRequest{Command: []string{"sh", "-c", script}} }

func testExecSignal(t *testing.T, w *world, m model.Execer) {
	out := newOutput()
	signals := make(chan string, 1)
	go func() {
		if out.wait(w.Patience, "ready") {
			signals <- "TERM"
		}
	}()
	code, err := m.Exec(w.ctx(t), w.ve, sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"),
		model.Streams{Stdout: out, Stderr: out, Signals: signals})
	w.must(t, "exec", err)
	if code != 3 {
		t.Errorf("exit code %d; want that of the trap, 3", code)
	}
}

// Cancelling must kill the command, not only stop waiting for it.
func testExecCancel(t *testing.T, w *world, m model.Execer) {
	out := newOutput()
	ctx, cancel := context.WithCancel(w.ctx(t))
	defer cancel()
	go func() {
		out.wait(w.Patience, "ready")
		cancel()
	}()
	stdin, feed := io.Pipe() // never ends by itself
	defer feed.Close()
	_, err := m.Exec(ctx, w.ve, sh("echo ready; exec sleep 98765"), model.Streams{Stdin: stdin, Stdout: out, Stderr: out})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled exec ended with %v", err)
	}
	var found bytes.Buffer
	_, err = m.Exec(w.ctx(t), w.ve, sh(`for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep '^sleep 98765'`),
		model.Streams{Stdout: &found, Stderr: io.Discard})
	w.must(t, "look for the command", err)
	if found.Len() > 0 {
		t.Errorf("the command runs on: %q", &found)
	}
}

func testExecTTY(t *testing.T, w *world, m model.Execer) {
	out := newOutput()
	resize := make(chan api.Resize, 1)
	stdin, feed := io.Pipe()
	go func() {
		defer feed.Close()
		if !out.wait(w.Patience, "24 80") {
			return
		}
		resize <- api.Resize{Rows: 30, Cols: 100}
		for range 100 { // the size follows soon, not at once
			if _, err := io.WriteString(feed, "stty size\n"); err != nil || out.wait(50*time.Millisecond, "30 100") {
				break
			}
		}
		io.WriteString(feed, "exit 5\n")
	}()
	code, err := m.Exec(w.ctx(t), w.ve, api.ExecRequest{Command: []string{"sh", "-c", "test -t 0 && stty size; exec sh"}, TTY: true, Rows: 24, Cols: 80},
		model.Streams{Stdin: stdin, Stdout: out, Stderr: io.Discard, Resize: resize})
	w.must(t, "exec", err)
	if code != 5 || !out.wait(0, "30 100") {
		t.Errorf("exit code %d, output %q; want 5 and the new window size", code, out.text())
	}
}

func testConsole(t *testing.T, w *world) {
	m := w.m.(model.Consoler)
	w.start(t)
	ctx, cancel := context.WithTimeout(w.ctx(t), w.Patience)
	defer cancel()
	stdin, feed := io.Pipe()
	out := newOutput()
	done := make(chan error, 1)
	go func() { done <- m.Console(ctx, w.ve, model.Streams{Stdin: stdin, Stdout: out, Stderr: io.Discard}) }()
	go io.WriteString(feed, "\n")
	if !out.waitAny(w.Patience) {
		t.Error("the console is silent")
	}
	feed.Close()
	select {
	case err := <-done:
		w.must(t, "console", err)
	case <-time.After(w.Patience):
		t.Fatal("the console did not end with its input")
	}
}

// output collects what a command writes, and lets a test wait for it.
type output struct {
	mu      sync.Mutex
	buffer  bytes.Buffer
	changed chan struct{}
}

func newOutput() *output { return &output{changed: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return o.buffer.Write(p)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.String()
}

// wait until the output contains text, for at most d.
func (o *output) wait(d time.Duration, text string) bool {
	return o.until(d, func(s string) bool { return strings.Contains(s, text) })
}

func (o *output) waitAny(d time.Duration) bool {
	return o.until(d, func(s string) bool { return s != "" })
}

func (o *output) until(d time.Duration, good func(string) bool) bool {
	deadline := time.After(d)
	for !good(o.text()) {
		select {
		case <-o.changed:
		case <-deadline:
			return false
		}
	}
	return true
}
