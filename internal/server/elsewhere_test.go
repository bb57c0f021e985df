package server_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/client"
	"polder/internal/server"
	"polder/internal/server/servertest"
)

// twoHosts reach each other: h1 is asked, h2 has the VE "far", h3 does not answer.
type twoHosts struct {
	backends map[string]*servertest.Backend
	urls     map[string]*url.URL
	client   *client.Client // of h1
}

func newTwoHosts(t *testing.T) *twoHosts {
	t.Helper()
	c := &twoHosts{backends: map[string]*servertest.Backend{}, urls: map[string]*url.URL{}}
	for _, name := range []string{"h1", "h2"} {
		backend := servertest.New()
		for _, ve := range []api.VE{
			{Name: "near", State: api.Running, Host: "h1"}, {Name: "far", State: api.Running, Host: "h2"}, {Name: "lost", State: api.Running, Host: "h3"},
		} {
			backend.Add(ve)
		}
		ts := httptest.NewServer(server.New(backend, server.Options{Host: name, Transport: c.transport}))
		t.Cleanup(ts.Close)
		c.backends[name] = backend
		c.urls[name], _ = url.Parse(ts.URL)
	}
	var err error
	if c.client, err = client.New(c.urls["h1"].String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.client.Close)
	return c
}

func (c *twoHosts) transport(host string) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		to := c.urls[host]
		if to == nil {
			return nil, api.Errorf(api.Unavailable, "connect to host %q: no route", host)
		}
		r = r.Clone(r.Context())
		r.URL.Host = to.Host
		return http.DefaultTransport.RoundTrip(r)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestStreamsOfAVEElsewhere(t *testing.T) {
	c := newTwoHosts(t)
	// Only h2 knows this one as its own, so that it must have been asked.
	c.backends["h1"].Add(api.VE{Name: "moved", State: api.Stopped, Host: "h2"})
	c.backends["h2"].Add(api.VE{Name: "moved", State: api.Running, Host: "h2"})
	var out, errs bytes.Buffer
	code, err := c.client.Exec(t.Context(), "moved", api.ExecRequest{Command: []string{"sh", "-c", "cat; echo $POLDER_VE >&2; exit 7"}},
		client.Streams{Stdin: strings.NewReader(strings.Repeat("line\n", 1<<16)), Stdout: &out, Stderr: &errs})
	if err != nil || code != 7 || out.Len() != 5<<16 || errs.String() != "moved\n" {
		t.Errorf("exec: code %d, %d bytes, %q, %v", code, out.Len(), errs.String(), err)
	}
	out.Reset()
	if err := c.client.Console(t.Context(), "moved", api.Resize{}, client.Streams{Stdin: strings.NewReader("hello"), Stdout: &out}); err != nil || out.String() != "moved login: HELLO" {
		t.Errorf("console: %q, %v", out.String(), err)
	}
	for _, name := range []string{"near", "far"} {
		ctx, cancel := context.WithCancel(t.Context())
		seen := writer(func(p []byte) { // while it is followed
			if string(p) != name+": booted\n" {
				t.Errorf("logs: %q", p)
			}
			cancel()
		})
		if err := c.client.Logs(ctx, name, true, seen); api.KindOf(err) != api.Cancelled {
			t.Errorf("logs of %s: %v", name, err)
		}
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

func TestErrorsOfAVEElsewhere(t *testing.T) {
	c := newTwoHosts(t)
	c.backends["h1"].Add(api.VE{Name: "stopped", State: api.Running, Host: "h2"})
	c.backends["h2"].Add(api.VE{Name: "stopped", State: api.Stopped, Host: "h2"})
	// Each host takes it for the other's.
	c.backends["h1"].Add(api.VE{Name: "between", State: api.Running, Host: "h2"})
	c.backends["h2"].Add(api.VE{Name: "between", State: api.Running, Host: "h1"})
	for name, want := range map[string]struct {
		kind api.Kind
		text string
	}{
		"nope":    {api.NotFound, `ve "nope" not found`},
		"lost":    {api.Unavailable, "no route"},
		"stopped": {api.Precondition, "is stopped"},
		"between": {api.Unavailable, "try again"},
	} {
		_, err := c.client.Exec(t.Context(), name, api.ExecRequest{Command: []string{"true"}}, client.Streams{Stdout: io.Discard})
		if api.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.text) {
			t.Errorf("exec in %s: %v", name, err)
		}
		if name == "stopped" {
			continue // has logs
		}
		if err := c.client.Logs(t.Context(), name, false, io.Discard); api.KindOf(err) != want.kind {
			t.Errorf("logs of %s: %v", name, err)
		}
	}
}

// A client that goes away ends what it started on the other host.
func TestLeavingEndsTheStreamElsewhere(t *testing.T) {
	c := newTwoHosts(t)
	ctx, cancel := context.WithCancel(t.Context())
	started := writer(func([]byte) { cancel() })
	_, err := c.client.Exec(ctx, "far", api.ExecRequest{Command: []string{"sh", "-c", "echo on; sleep 600"}}, client.Streams{Stdout: started})
	if api.KindOf(err) != api.Cancelled {
		t.Errorf("got %v", err)
	}
}

// A server that goes down does not wait for a stream that it only hands on.
func TestShuttingDownEndsStreamsElsewhere(t *testing.T) {
	c := newTwoHosts(t)
	ctx, stop := context.WithCancel(t.Context())
	backend := servertest.New()
	backend.Add(api.VE{Name: "far", State: api.Running, Host: "h2"})
	l, err := server.Listen(t.TempDir()+"/s", nil)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- server.New(backend, server.Options{Host: "h4", Transport: c.transport}).Serve(ctx, l)
	}()
	asked, err := client.New("unix://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Close()
	started := writer(func([]byte) { stop() })
	if _, err = asked.Exec(t.Context(), "far", api.ExecRequest{Command: []string{"sh", "-c", "echo on; sleep 600"}}, client.Streams{Stdout: started}); err == nil {
		t.Error("the session did not end")
	}
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the server does not come down")
	}
}

func TestWhatAnotherHostHas(t *testing.T) {
	c := newTwoHosts(t)
	for path, want := range map[string]int{
		"/v1/pools": 200, "/v1/pools?host=h1": 200, "/v1/pools?host=h2": 200, "/v1/pools?host=h3": 503, "/v1/pools?host=H2": 400,
		"/v1/pools/default/volumes?host=h2": 200, "/v1/pools/nope/volumes?host=h2": 404, "/v1/capabilities?host=h2": 200, "/v1/pools?hots=h2": 400,
	} {
		res, err := http.Get(c.urls["h1"].String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != want {
			t.Errorf("%s: %s %s, want %d", path, res.Status, body, want)
		}
	}
	alone := httptest.NewServer(server.New(servertest.New(), server.Options{Host: "h1"}))
	defer alone.Close()
	if _, body := request(t, alone, "GET", "/v1/pools?host=h2", ""); !strings.Contains(body, "not found") {
		t.Errorf("a host alone: %s", body)
	}
}
