package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/api"
	"polder/internal/store"
)

// testHost is a host without a daemon, on an address of the loopback.
type testHost struct {
	*Cluster
	data string
	stop func() // as a daemon that ends in order; can be called again
}

func optionsAt(t *testing.T, name, address string) Options {
	t.Helper()
	return Options{
		Name: name, Data: t.TempDir(), Version: "v1", Address: address, Log: slog.New(slog.DiscardHandler),
		Leave: func(context.Context) error { return nil },
	}
}

func someFacts() Facts {
	return Facts{
		Kernel: "6.12", CPUs: 2, Memory: api.GiB,
		Capabilities: func(context.Context) []api.Capability { return nil },
		Figures:      func(context.Context) (Figures, error) { return Figures{PoolTotal: 10, PoolFree: 5, MemoryFree: 3}, nil },
	}
}

// bring makes a host up to its Cluster; it serves others when it has an address.
func bring(t *testing.T, o Options) *testHost {
	t.Helper()
	i, err := Identify(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	st, err := i.OpenStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(t.Context(), i, st, someFacts())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- c.Serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("hello " + Peer(r.Context()))) //nolint:errcheck // the test sees that nothing came
		}))
	}()
	c.Up()
	if address := i.now().Address; address != "" {
		awaitListener(t, address)
	}
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		c.Close()
		i.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return &testHost{c, o.Data, stop}
}

func awaitListener(t *testing.T, address string) {
	t.Helper()
	for t.Context().Err() == nil {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return
		}
	}
}

// freePort finds three ports in a row, none of which a connection gets by chance while their host is down for a moment: Linux
// takes those from 32768 on.
func freePort(t *testing.T) string {
	t.Helper()
	for range 20 {
		address := fmt.Sprintf("127.0.0.1:%d", 16384+rand.IntN(16000))
		if portsFree(address) == nil {
			return address
		}
	}
	t.Fatal("no three free ports")
	return ""
}

// opened is the first host of a cluster, as after its first token.
func opened(t *testing.T) *testHost {
	t.Helper()
	return openedFor(t, 0)
}

func openedFor(t *testing.T, life time.Duration) *testHost {
	t.Helper()
	o := optionsAt(t, "h1", freePort(t))
	o.Life = life
	func() {
		i, err := Identify(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		st, err := i.OpenStore(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		c, err := New(t.Context(), i, st, someFacts())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.JoinToken(t.Context(), api.JoinTokenRequest{Address: o.Address}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-c.Reopen():
		default:
			t.Error("the first token does not ask for the store to be opened anew")
		}
	}()
	return bring(t, o)
}

func (h *testHost) token(t *testing.T) token {
	t.Helper()
	made, err := h.JoinToken(t.Context(), api.JoinTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := parseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func joinOptions(t *testing.T, name, token string) Options {
	t.Helper()
	o := optionsAt(t, name, freePort(t))
	o.Join = token
	return o
}

// wantRefused joins, which must fail so, and leave nothing behind.
func wantRefused(t *testing.T, o Options, kind api.Kind, text string) {
	t.Helper()
	_, err := Identify(t.Context(), o)
	if api.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("join: %v; want %s with %q", err, kind, text)
	}
	left, err := os.ReadDir(o.Data)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestWhoIsNotLetIn(t *testing.T) {
	h1 := opened(t)
	tok := h1.token(t)

	unknown := tok
	unknown.Secret = newSecret()
	wantRefused(t, joinOptions(t, "h2", unknown.String()), api.Precondition, "no such token")

	elsewhere := tok
	elsewhere.Pin[0] ^= 1
	wantRefused(t, joinOptions(t, "h2", elsewhere.String()), api.Precondition, "another cluster")

	wantRefused(t, joinOptions(t, "h1", tok.String()), api.Exists, `host "h1" already`)
	wantRefused(t, joinOptions(t, "h2", "polder-join-x"), api.Invalid, "not whole")

	rec, err := h1.tickets.Get(t.Context(), tok.key())
	if err != nil {
		t.Fatal(err)
	}
	if rec.Value.Used != "" {
		t.Error("a host that was not let in has used the token up")
	}
	rec.Value.ExpiresAt = time.Now().Add(-time.Second)
	if _, err := h1.tickets.Update(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, joinOptions(t, "h2", tok.String()), api.Precondition, "expired")
	list, err := h1.Hosts(t.Context())
	if err != nil || len(list) != 1 {
		t.Errorf("hosts %v, %v", list, err)
	}
}

func TestATokenIsGoodForOneHost(t *testing.T) {
	h1 := opened(t)
	tok := h1.token(t)
	o := joinOptions(t, "h2", tok.String())
	i, err := Identify(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	wantRefused(t, joinOptions(t, "h3", tok.String()), api.Precondition, `used already, by host "h2"`)

	// Joined once, it needs no token any more.
	o.Join = "polder-join-anything"
	again, err := Identify(t.Context(), o)
	if err != nil || again.now().ID != i.now().ID {
		t.Errorf("%v, %v", again, err)
	}
}

// A daemon that is killed before it has the answer, or before it has kept it, joins at its next start by the same token.
func TestJoinIsRepeatable(t *testing.T) {
	h1 := opened(t)
	o := joinOptions(t, "h2", h1.token(t).String())
	first, err := Identify(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for what, undo := range map[string]func(key []byte) error{
		"asked":   func(key []byte) error { return os.WriteFile(joiningPath(o.Data), key, 0o600) },
		"written": func([]byte) error { return os.WriteFile(filepath.Join(o.Data, "cluster.new"), nil, 0o600) },
	} {
		text, err := os.ReadFile(filepath.Join(clusterDir(o.Data), "host.pem"))
		if err != nil {
			t.Fatal(err)
		}
		key := asJoining(t, text, first.now().ID)
		if err := os.RemoveAll(clusterDir(o.Data)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(joiningPath(o.Data), key, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := undo(key); err != nil {
			t.Fatal(err)
		}
		again, err := Identify(t.Context(), o)
		if err != nil || again.now().ID != first.now().ID {
			t.Errorf("%s: %v, %v; want the host %s", what, again, err, first.now().ID)
		}
		left, err := os.ReadDir(o.Data)
		if err != nil || len(left) != 1 {
			t.Errorf("%s: left behind: %v, %v", what, left, err)
		}
	}
}

func TestAHostWithVEsOfItsOwnDoesNotJoin(t *testing.T) {
	h1 := opened(t)
	o := joinOptions(t, "h2", h1.token(t).String())
	st, err := store.Open(t.Context(), store.Options{Dir: o.storeDir(), Log: o.Log})
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.NewTable[map[string]string](st, "image", 1).Create(t.Context(), "sha256:1", map[string]string{})
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Identify(t.Context(), o); api.KindOf(err) != api.Precondition || !strings.Contains(err.Error(), "images of its own") {
		t.Errorf("join: %v", err)
	}
}

func TestCheckOfAJoinRequest(t *testing.T) {
	now := time.Now()
	good := joinRequest{Version: joinVersion, Name: "h2", ID: "x", Address: "192.0.2.1:7440", Time: now}
	for what, c := range map[string]struct {
		alter func(*joinRequest)
		kind  api.Kind
		text  string
	}{
		"newer cluster": {func(r *joinRequest) { r.Version-- }, api.Unsupported, "protocol"},
		"name":          {func(r *joinRequest) { r.Name = "H2" }, api.Invalid, "name"},
		"address":       {func(r *joinRequest) { r.Address = "h2:7440" }, api.Invalid, "address"},
		"clock behind":  {func(r *joinRequest) { r.Time = now.Add(-31 * time.Minute) }, api.Precondition, "clock"},
		"clock ahead":   {func(r *joinRequest) { r.Time = now.Add(31 * time.Minute) }, api.Precondition, "clock"},
		"no request":    {func(*joinRequest) {}, api.Invalid, "certificate request"},
		"minutes off":   {func(r *joinRequest) { r.Time = now.Add(-10 * time.Minute) }, api.Invalid, "certificate request"}, // past the clock
	} {
		r := good
		c.alter(&r)
		if _, err := r.check(now, "v1"); api.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAStrangerOnThePeerPortGetsNothing(t *testing.T) {
	h1 := opened(t)
	address := h1.identity.now().Address
	other, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := other.pair(subject{"h1", h1.identity.now().ID, netip.MustParseAddr("127.0.0.1")}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		t.Fatal(err)
	}
	for what, config := range map[string]*tls.Config{
		"no certificate":     {InsecureSkipVerify: true},
		"of another cluster": {InsecureSkipVerify: true, Certificates: []tls.Certificate{foreign}},
	} {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		for _, path := range []string{"/v1/hosts", "/peer/v1/x", "/", joinPath} {
			res, err := client.Get("https://" + address + path)
			if err != nil {
				continue
			}
			res.Body.Close()
			if res.StatusCode < 400 {
				t.Errorf("%s: GET %s is answered with %s", what, path, res.Status)
			}
		}
	}
	if res, err := http.Get("http://" + address + "/v1/hosts"); err == nil {
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("plain HTTP is answered with %s", res.Status)
		}
	}
}

func TestJoinRouteAnswersNonsense(t *testing.T) {
	h1 := opened(t)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	for _, body := range []string{"", "{}", "[]", `{"secret":"AA=="}`, `{"secret":"` + strings.Repeat("A", mostJoinBytes) + `"}`} {
		res, err := client.Post("https://"+h1.identity.now().Address+joinPath, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var p api.Problem
		err = json.NewDecoder(res.Body).Decode(&p)
		res.Body.Close()
		if err != nil || p.Kind != api.Invalid {
			t.Errorf("%.40q: %v %v", body, p, err)
		}
	}
}
