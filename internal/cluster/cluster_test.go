package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"polder/api"
)

// asJoining is what a host keeps while it joins, made of what it keeps after.
func asJoining(t *testing.T, pair []byte, id string) []byte {
	t.Helper()
	for {
		block, rest := pem.Decode(pair)
		if block == nil {
			t.Fatal("no key")
		}
		if block.Type == "EC PRIVATE KEY" {
			return pem.EncodeToMemory(&pem.Block{Type: block.Type, Headers: map[string]string{"id": id}, Bytes: block.Bytes})
		}
		pair = rest
	}
}

func ask(t *testing.T, from *testHost, host string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://polder/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := from.Transport(host).RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return string(text), err
}

func TestAHostAloneIsAClusterOfOne(t *testing.T) {
	h := bring(t, optionsAt(t, "h1", ""))
	list, err := h.Hosts(t.Context())
	if err != nil || len(list) != 1 || !list[0].Alive || list[0].Role != api.RoleMember || list[0].Address != "" || list[0].MemoryFree != 3 {
		t.Errorf("hosts %+v, %v", list, err)
	}
	if text, err := ask(t, h, "h1"); err != nil || text != "hello h1" {
		t.Errorf("itself: %q, %v", text, err)
	}
	if _, err := h.Dial(t.Context(), "h2"); api.KindOf(err) != api.NotFound {
		t.Errorf("dial of an unknown host: %v", err)
	}
	if Advice(list) != "" {
		t.Error("a host alone gets advice")
	}
}

func TestTwoHostsTalk(t *testing.T) {
	h1 := opened(t)
	changes := h1.Watch(t.Context())
	h2 := bring(t, joinOptions(t, "h2", h1.token(t).String()))
	for _, h := range []*testHost{h1, h2} {
		for _, name := range []string{"h1", "h2"} {
			if text, err := ask(t, h, name); err != nil || text != "hello "+h.Name() {
				t.Errorf("%s asks %s: %q, %v", h.Name(), name, text, err)
			}
		}
	}
	for s := (Status{}); !s.Alive; {
		select {
		case <-changes:
		case <-t.Context().Done():
			t.Fatal("h2 is never seen alive")
		}
		var err error
		if s, err = h1.Reachable(t.Context(), "h2"); err != nil && api.KindOf(err) != api.NotFound && api.KindOf(err) != api.Unavailable {
			t.Fatal(err)
		}
	}
	list, err := h2.Hosts(t.Context())
	if err != nil || len(list) != 2 || Advice(list) == "" {
		t.Errorf("hosts %+v, %v; and advice %q", list, err, Advice(list))
	}
}

func TestAHostThatWasRemovedIsAStranger(t *testing.T) {
	h1 := opened(t)
	h2 := bring(t, joinOptions(t, "h2", h1.token(t).String()))
	if text, err := ask(t, h2, "h1"); err != nil || text != "hello h2" {
		t.Fatalf("%q, %v", text, err)
	}
	if err := h1.Remove(t.Context(), "h1", true); api.KindOf(err) != api.Precondition {
		t.Errorf("a host removes itself: %v", err)
	}
	if err := h1.Remove(t.Context(), "h9", true); api.KindOf(err) != api.NotFound {
		t.Errorf("removal of an unknown host: %v", err)
	}
	if err := h1.Remove(t.Context(), "h2", true); err != nil {
		t.Fatal(err)
	}
	if text, _ := ask(t, h2, "h1"); text == "hello h2" {
		t.Error("a host that was removed is answered")
	}
	select {
	case <-h2.Reopen(): // it notices
	case <-time.After(time.Minute):
		t.Error("it does not notice")
	}
	if err := h2.register(t.Context()); api.KindOf(err) != api.Precondition {
		t.Errorf("it comes up again: %v", err)
	}
	if _, ok, err := readIdentity(h2.data); ok || err != nil {
		t.Errorf("it still has an identity: %v", err)
	}
}

// Another machine that was given a host's name and address, and even a certificate for that name, is not that host.
func TestDialKnowsTheHostByItsID(t *testing.T) {
	h1 := opened(t)
	h2 := bring(t, joinOptions(t, "h2", h1.token(t).String()))
	if _, err := h1.hosts.Modify(t.Context(), "h2", func(h *Host) error { h.ID = "another"; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := h1.Dial(t.Context(), "h2"); api.KindOf(err) != api.Unavailable {
		t.Errorf("dial: %v", err)
	}
	if text, _ := ask(t, h2, "h1"); text == "hello h2" {
		t.Error("it is answered")
	}
}

func TestCertificatesAreRenewedInTime(t *testing.T) {
	h1 := opened(t)
	credentials := h1.credentials.Load()
	first := credentials.pair.Load().Leaf
	life := first.NotAfter.Sub(first.NotBefore.Add(clockSkew))
	for at, renewed := range map[time.Duration]bool{life * 6 / 10: false, life * 7 / 10: true} {
		before := credentials.pair.Load().Leaf
		if err := h1.renewWhenDue(t.Context(), before.NotBefore.Add(clockSkew+at)); err != nil {
			t.Fatal(err)
		}
		if got := credentials.pair.Load().Leaf.SerialNumber.Cmp(before.SerialNumber) != 0; got != renewed {
			t.Errorf("after %v of %v: renewed is %v", at, life, got)
		}
	}
	onDisk, err := tls.LoadX509KeyPair(credentials.files.Cert, credentials.files.Key)
	if err != nil || onDisk.Leaf.SerialNumber.Cmp(credentials.pair.Load().Leaf.SerialNumber) != 0 {
		t.Errorf("the file has another certificate: %v", err)
	}
}

// What a host signs is good at once for hosts whose clocks are behind its own.
func TestClocksMayBeMinutesApart(t *testing.T) {
	now := time.Now()
	ca, err := newAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	for _, ahead := range []time.Duration{0, 5 * time.Minute, 30 * time.Minute} {
		pair, err := ca.pair(subject{"h1", "id", netip.MustParseAddr("192.0.2.1")}, now.Add(ahead), defaultLife)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := certificateIn(pair)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca.pem())
		for _, use := range leaf.ExtKeyUsage {
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				t.Errorf("signed %v ahead of us: %v", ahead, err)
			}
		}
	}
}

// A short life is lived through without a restart, and other hosts and the store are reached all the time.
func TestAShortLife(t *testing.T) {
	const life = 2 * time.Second
	h1 := openedFor(t, life)
	o := joinOptions(t, "h2", h1.token(t).String())
	o.Life = life
	h2 := bring(t, o)
	first := h2.credentials.Load().pair.Load().Leaf
	for end := time.Now().Add(2 * o.Life); time.Now().Before(end); {
		if text, err := askAnew(t, h2); err != nil || text != "hello h2" {
			t.Fatalf("%q, %v; its certificate ended %v ago", text, err, time.Since(first.NotAfter))
		}
	}
	if h2.credentials.Load().pair.Load().Leaf.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("the certificate was never renewed")
	}
}

// askAnew asks h1 over a new connection.
func askAnew(t *testing.T, from *testHost) (string, error) {
	t.Helper()
	from.transport("h1").CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	sleep(ctx, 50*time.Millisecond)
	return ask(t, from, "h1")
}

// Hosts on one etcd are one cluster, without tokens: each makes its certificate by the CA in there.
func TestHostsOnAnExternalEtcd(t *testing.T) {
	etcd := opened(t) // somebody's etcd, for once another cluster's member
	var hosts []*testHost
	for _, name := range []string{"x1", "x2"} {
		o := optionsAt(t, name, freePort(t))
		o.Etcd, o.EtcdTLS = etcd.identity.now().Endpoints, etcd.identity.tls()
		hosts = append(hosts, bring(t, o))
	}
	if text, err := ask(t, hosts[0], "x2"); err != nil || text != "hello x1" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := hosts[0].JoinToken(t.Context(), api.JoinTokenRequest{}); api.KindOf(err) != api.Precondition {
		t.Errorf("a token: %v", err)
	}
	o := hosts[1].identity.options
	o.Data = t.TempDir()
	i, err := Identify(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	st, err := i.OpenStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := New(t.Context(), i, st, someFacts()); api.KindOf(err) != api.Exists {
		t.Errorf("another machine of that name: %v", err)
	}
}
