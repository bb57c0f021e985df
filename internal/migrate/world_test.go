package migrate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"polder/internal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// target is a host that moves come to.
type target struct {
	*Sessions
	dial Dial
	// cutLink makes all connections silent, those to come too.
	cutLink func()
}

// newTarget serves sessions by mutual TLS on the listener; connect makes the source's raw connections to it.
func newTarget(t testing.TB, l net.Listener, connect func(ctx context.Context) (net.Conn, error)) *target {
	t.Helper()
	config := mutual(t)
	h := &target{Sessions: NewSessions()}
	mux := http.NewServeMux()
	mux.Handle("GET "+Prefix+"{id}/{stream...}", h.Sessions)
	mux.Handle("GET "+LinkPath, LinkHandler())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		srv.Serve(tls.NewListener(l, config))
		close(served)
	}()
	t.Cleanup(func() {
		h.Close()
		srv.Close()
		<-served
	})
	h.dial = func(ctx context.Context) (net.Conn, error) {
		raw, err := connect(ctx)
		if err != nil {
			return nil, err
		}
		secure := tls.Client(raw, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return secure, nil
	}
	return h
}

// onLoopback is a target behind real sockets.
func onLoopback(t testing.TB) *target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newTarget(t, l, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	})
}

// inBubble is a target behind pipes, for tests with time of their own.
func inBubble(t testing.TB) *target {
	t.Helper()
	l := &pipes{waiting: make(chan net.Conn), closed: make(chan struct{}), cut: make(chan struct{})}
	h := newTarget(t, l, l.dial)
	h.cutLink = func() { close(l.cut) }
	return h
}

// mutual is a configuration for both ends that trusts only itself.
func mutual(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host"}, DNSNames: []string{"host"},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "host", MinVersion: tls.VersionTLS13,
	}
}

// pair is a session with both its ends.
func pair(t testing.TB, h *target, o SessionOptions) (source, at *Session) {
	t.Helper()
	o.Secret, o.Peer, o.Local = NewSecret(), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1")
	at = h.Open("op1", o.Secret, o.Local, o.Peer)
	source = Connect("op1", h.dial, o)
	t.Cleanup(source.Close)
	t.Cleanup(at.Close)
	return source, at
}

// both opens a stream at both ends.
func both(t testing.TB, source, at *Session, name string) (here, there model.Stream) {
	t.Helper()
	var wait sync.WaitGroup
	var err1, err2 error
	wait.Go(func() { here, err1 = source.Stream(t.Context(), name) })
	there, err2 = at.Stream(t.Context(), name)
	wait.Wait()
	if err1 != nil || err2 != nil {
		t.Fatalf("open stream %q: %v; %v", name, err1, err2)
	}
	return here, there
}

// pipes is a listener without a network. Its connections buffer nothing, and can be cut without a word.
type pipes struct {
	waiting chan net.Conn
	closed  chan struct{}
	once    sync.Once
	cut     chan struct{} // closed when nothing gets through any more
}

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	cut := p.cut
	select {
	case p.waiting <- &cuttable{Conn: far, cut: cut}:
		return &cuttable{Conn: near, cut: cut}, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.waiting:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// cuttable swallows what is written once cut is closed, so that the other end waits in vain. Its close is heard by nobody then.
type cuttable struct {
	net.Conn
	cut chan struct{}
}

func (c *cuttable) Close() error {
	select {
	case <-c.cut:
		return c.SetDeadline(time.Unix(1, 0))
	default:
		return c.Conn.Close()
	}
}

func (c *cuttable) Write(p []byte) (int, error) {
	select {
	case <-c.cut:
		return len(p), nil
	default:
		return c.Conn.Write(p)
	}
}

var loopback = netip.MustParseAddr("127.0.0.1")
