package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"polder/api"
	"polder/client"
	"polder/internal/server"
	"polder/internal/server/servertest"
)

func newClient(t testing.TB, url string) *client.Client {
	t.Helper()
	c, err := client.New(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func newPair(t testing.TB) (*servertest.Backend, *client.Client) {
	t.Helper()
	backend := servertest.New()
	ts := httptest.NewServer(server.New(backend, server.Options{}))
	t.Cleanup(ts.Close)
	backend.Add(api.VE{Name: "c1", State: api.Running})
	return backend, newClient(t, ts.URL)
}

func TestNew(t *testing.T) {
	for _, good := range []string{"unix:///run/x", "/run/x", "https://host:8443", "http://127.0.0.1:1/"} {
		if _, err := client.New(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "run/x", "unix://run/x", "ftp://x", "https://", "http://a b", "h1"} {
		if _, err := client.New(bad); api.KindOf(err) != api.Invalid {
			t.Errorf("%q: %v, want invalid", bad, err)
		}
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	_, c := newPair(t)
	ctx := t.Context()
	_, err := c.VE(ctx, "nope")
	if api.KindOf(err) != api.NotFound || !strings.Contains(err.Error(), `ve "nope" not found`) {
		t.Errorf("unknown ve: %v", err)
	}
	if _, err := c.Image(ctx, "debian/13"); err != nil {
		t.Errorf("alias with a slash: %v", err)
	}
	if _, err := c.Image(ctx, "a/../b?c#d%2F"); api.KindOf(err) != api.NotFound || !strings.Contains(err.Error(), "a/../b?c#d%2F") {
		t.Errorf("odd alias: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.VEs(ended); api.KindOf(err) != api.Cancelled || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := newClient(t, "unix:///nowhere").VEs(ctx); api.KindOf(err) != api.Unavailable || !client.Unreachable(err) {
		t.Errorf("no server: %v", err)
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	if _, err := newClient(t, other.URL).VEs(ctx); api.KindOf(err) != api.Internal || !strings.Contains(err.Error(), "404") {
		t.Errorf("another server: %v", err)
	}
}

// TestWaitSurvivesRestart takes the server away and brings it back, at another moment of the same operation.
func TestWaitSurvivesRestart(t *testing.T) {
	dir, err := os.MkdirTemp("", "polder")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	backend := servertest.New()
	serve := func() (stop func()) {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- server.New(backend, server.Options{}).Serve(ctx, l) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	stop := serve()
	c := newClient(t, path)
	op, err := c.Launch(t.Context(), api.LaunchRequest{Name: "c1", Image: "stuck/1"})
	if err != nil {
		t.Fatal(err)
	}
	atWork, restarted := make(chan struct{}), make(chan struct{})
	go func() {
		<-atWork
		stop()
		backend.Release()
		stop = serve()
		close(restarted)
	}()
	seen := 0
	op, err = c.Wait(t.Context(), op.ID, func(op api.Operation) {
		if op.Step == "work" && seen == 0 {
			seen++
			close(atWork)
		}
	})
	<-restarted
	defer stop()
	if err != nil || op.State != api.OperationDone {
		t.Errorf("state %q, %v", op.State, err)
	}
}

func TestWaitOfUnknownOperation(t *testing.T) {
	_, c := newPair(t)
	if _, err := c.Wait(t.Context(), "ffff", nil); api.KindOf(err) != api.NotFound {
		t.Errorf("got %v, want not found", err)
	}
}

func TestEvents(t *testing.T) {
	backend, c := newPair(t)
	op, err := c.Stop(t.Context(), "c1", api.StopRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := backend.WaitOperation(t.Context(), op.ID, func(api.Operation) {}); err != nil {
		t.Fatal(err)
	}
	if _, err = c.Start(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	var got []int64
	err = c.Events(t.Context(), 1, func(e api.Event) error {
		got = append(got, e.ID)
		return enough
	})
	if !errors.Is(err, enough) || len(got) != 1 || got[0] != 2 {
		t.Errorf("events %v, %v; want 2 alone, and the caller's error", got, err)
	}
}

func TestExec(t *testing.T) {
	_, c := newPair(t)
	ctx := t.Context()
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // three windows
	var out, errOut bytes.Buffer
	code, err := c.Exec(ctx, "c1", api.ExecRequest{Command: []string{"sh", "-c", "cat; echo done >&2; exit 3"}},
		client.Streams{Stdin: bytes.NewReader(big), Stdout: &out, Stderr: &errOut})
	if err != nil || code != 3 || !bytes.Equal(out.Bytes(), big) || errOut.String() != "done\n" {
		t.Errorf("code %d, %v, %d bytes, stderr %q", code, err, out.Len(), errOut.String())
	}
	if _, err := c.Exec(ctx, "c1", api.ExecRequest{}, client.Streams{Stdout: io.Discard}); api.KindOf(err) != api.Invalid {
		t.Errorf("no command: %v", err)
	}
	if _, err := c.Exec(ctx, "nope", api.ExecRequest{Command: []string{"true"}}, client.Streams{Stdout: io.Discard}); api.KindOf(err) != api.NotFound {
		t.Errorf("unknown ve: %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (brokenPipe) Read([]byte) (int, error)  { return 0, io.ErrClosedPipe }

func TestExecEndsWithItsStreams(t *testing.T) {
	_, c := newPair(t)
	endless := api.ExecRequest{Command: []string{"sh", "-c", "while :; do echo x; done"}}
	if _, err := c.Exec(t.Context(), "c1", endless, client.Streams{Stdout: brokenPipe{}}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("stdout broke: %v", err)
	}
	silent := api.ExecRequest{Command: []string{"sleep", "1000"}}
	if _, err := c.Exec(t.Context(), "c1", silent, client.Streams{Stdin: brokenPipe{}, Stdout: io.Discard}); err == nil || !strings.Contains(err.Error(), io.ErrClosedPipe.Error()) {
		t.Errorf("stdin broke: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	code, err := c.Exec(ctx, "c1", api.ExecRequest{Command: []string{"sh", "-c", "echo up; sleep 1000"}}, client.Streams{Stdout: writerFunc(func() { cancel() })})
	if api.KindOf(err) != api.Cancelled {
		t.Errorf("cancelled: code %d, %v", code, err)
	}
}

type writerFunc func()

func (w writerFunc) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

// TestSignalPassesUnreadInput sends a signal to a command that reads nothing, behind more input than fits.
func TestSignalPassesUnreadInput(t *testing.T) {
	_, c := newPair(t)
	signals := make(chan string)
	code, err := c.Exec(t.Context(), "c1", api.ExecRequest{Command: []string{"sh", "-c", "echo up; exec sleep 1000"}}, client.Streams{
		Stdin:   io.LimitReader(zeros{}, 100<<20),
		Stdout:  writerFunc(func() { go func() { signals <- "TERM" }() }),
		Signals: signals,
	})
	if err != nil || code != 128+15 {
		t.Errorf("code %d, %v; want 143", code, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
