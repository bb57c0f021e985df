package daemon

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/client"
)

func frontAt(t *testing.T, patience time.Duration) (*front, *http.Client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return newFrontFor(l, patience), &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// Who asks while nobody is there hears why.
func TestRequestsDoNotWaitForEver(t *testing.T) {
	f, web := frontAt(t, time.Millisecond)
	f.because(errNoStore)
	res, err := web.Get("http://polder/v1/ves")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d", res.StatusCode)
	}
	if err := client.Problem(res); api.KindOf(err) != api.Unavailable || !strings.Contains(err.Error(), "too few of the hosts") {
		t.Errorf("got %v", err)
	}
}

// Who asks while the parts are put together is answered when they are.
func TestRequestsWaitForTheDaemon(t *testing.T) {
	f, web := frontAt(t, time.Minute)
	got := make(chan error, 1)
	go func() {
		res, err := web.Get("http://polder/v1/ves")
		if err == nil {
			err = res.Body.Close()
		}
		got <- err
	}()
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})} //nolint:gosec // a test's
	go server.Serve(f.door())                                                                      //nolint:errcheck // it is closed
	defer server.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
