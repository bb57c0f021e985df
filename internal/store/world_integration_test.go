//go:build integration

package store_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/internal/store"
)

// world is a cluster's hosts on the loopback interface, each at an address of its own, and what they need.
type world struct {
	t     *testing.T
	dir   string
	ca    *authority
	quiet *slog.Logger
}

type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), quiet: slog.New(slog.DiscardHandler)}
	if os.Getenv("POLDER_TEST_LOG") != "" {
		w.quiet = slog.Default()
	}
	w.ca = newAuthority(t, w.dir, "ca")
	return w
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{t: t, file: filepath.Join(dir, name+".pem"), key: newKey(t)}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes a certificate for the host at ip.
func (a *authority) issue(dir, ip string) store.TLS {
	a.t.Helper()
	key := newKey(a.t)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(ip)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	files := store.TLS{CA: a.file, Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	writePEM(a.t, files.Cert, "CERTIFICATE", der)
	writePEM(a.t, files.Key, "PRIVATE KEY", text)
	return files
}

// options are those of host n, which is h<n>.
func (w *world) options(n int) store.Options {
	w.t.Helper()
	dir := filepath.Join(w.dir, fmt.Sprint("h", n))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	ip := fmt.Sprint("127.0.7.", n)
	peering := &store.Peering{Name: fmt.Sprint("h", n), Peer: ip + ":7441", Client: ip + ":7442"}
	peering.TLS = store.TLS{CA: w.ca.file, Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	if _, err := os.Stat(peering.TLS.Cert); err != nil {
		w.ca.issue(dir, ip)
	}
	return store.Options{Dir: filepath.Join(dir, "store"), Peering: peering, Log: w.quiet}
}

// joining are the options of host n when it is new among the members that s knows.
func (w *world) joining(s *store.Store, n int) store.Options {
	w.t.Helper()
	o := w.options(n)
	members, err := s.Members(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	o.Peering.Join = map[string]string{}
	for _, m := range members {
		o.Peering.Join[m.Name] = m.Peer
	}
	return o
}

func (w *world) open(o store.Options) *store.Store {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	s, err := store.Open(ctx, o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = s.Close() })
	return s
}

// join makes hosts members by the store of another one, and opens their stores.
func (w *world) join(s *store.Store, hosts ...int) (joined []*store.Store) {
	w.t.Helper()
	for _, n := range hosts {
		o := w.options(n)
		w.await(patience, func() error { return s.AddMember(w.t.Context(), o.Peering.Name, o.Peering.Peer) })
		joined = append(joined, w.open(w.joining(s, n)))
	}
	w.promote(s, hosts...)
	return joined
}

func (w *world) promote(s *store.Store, hosts ...int) {
	w.t.Helper()
	for _, n := range hosts {
		w.await(patience, func() error { return s.PromoteMember(w.t.Context(), fmt.Sprint("h", n)) })
	}
}

// cluster opens the stores of n hosts.
func (w *world) cluster(n int) []*store.Store {
	w.t.Helper()
	first := w.open(w.options(1))
	others := []int{2, 3, 4, 5}[:n-1]
	return append([]*store.Store{first}, w.join(first, others...)...)
}

// client opens a store as a host that is no member.
func (w *world) client(hosts ...int) *store.Store {
	w.t.Helper()
	o := store.Options{TLS: w.options(9).Peering.TLS, Log: w.quiet}
	for _, n := range hosts {
		o.Endpoints = append(o.Endpoints, w.options(n).Peering.Client)
	}
	return w.open(o)
}

// connected is client, once it has a connection to each: behind silence it would get none.
func (w *world) connected(hosts ...int) *store.Store {
	w.t.Helper()
	count := func() map[int]int {
		text, err := os.ReadFile("/proc/self/net/tcp")
		if err != nil {
			w.t.Fatal(err)
		}
		n := map[int]int{}
		for _, host := range hosts { // to 127.0.7.HOST:7442, established
			n[host] = strings.Count(string(text), fmt.Sprintf(" %02X07007F:1D12 01 ", host))
		}
		return n
	}
	before := count()
	client := w.client(hosts...)
	w.await(patience, func() error {
		for host, n := range count() {
			if n <= before[host] {
				return fmt.Errorf("no connection to h%d", host)
			}
		}
		return nil
	})
	return client
}

// await tries until it succeeds.
func (w *world) await(limit time.Duration, try func() error) {
	w.t.Helper()
	start := time.Now()
	err := try()
	for ; err != nil && time.Since(start) < limit; err = try() {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		w.t.Fatalf("after %v: %v", limit, err)
	}
}

func kindOf(err error, want api.Kind) error {
	if api.KindOf(err) != want {
		return fmt.Errorf("error %w has kind %q, want %q", err, api.KindOf(err), want)
	}
	return nil
}
