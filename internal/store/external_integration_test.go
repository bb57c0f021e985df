//go:build integration

package store_test

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"polder/api"
	"polder/internal/store"
)

// serverDir makes the test binary an etcd server at serverURL with its data there, by https with a certificate of its own
// making, of which clients need one too.
const (
	serverDir = "POLDER_TEST_ETCD_DIR"
	serverURL = "POLDER_TEST_ETCD_URL"
)

func serveEtcd(dir string) {
	c := embed.NewConfig()
	c.Dir = dir
	c.LogLevel = "error"
	client, err := url.Parse(os.Getenv(serverURL))
	if err == nil {
		if client.Scheme == "https" {
			c.ClientTLSInfo = transport.TLSInfo{
				CertFile: dir + "/../cert.pem", KeyFile: dir + "/../key.pem", TrustedCAFile: dir + "/../cert.pem", ClientCertAuth: true,
			}
		}
		c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
		peer := url.URL{Scheme: "unix", Host: "localhost:" + client.Port() + "1"}
		c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		c.InitialCluster = c.InitialClusterFromName(c.Name)
		var etcd *embed.Etcd
		if etcd, err = embed.StartEtcd(c); err == nil {
			<-etcd.Server.ReadyNotify()
			fmt.Println("ready")
			err = <-etcd.Err()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// startEtcd returns when the server is ready; kill ends it as rudely as possible.
func startEtcd(t *testing.T, dir, endpoint string) (kill func()) {
	t.Helper()
	child := exec.Command("/proc/self/exe")
	child.Dir = t.TempDir() // of the peer's socket
	child.Env = append(os.Environ(), serverDir+"="+dir, serverURL+"="+endpoint)
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}
	t.Cleanup(kill)
	if !bufio.NewScanner(stdout).Scan() {
		t.Fatal("etcd did not start")
	}
	return kill
}

// TestSuiteOnExternalEtcd runs the tests of records, transactions, watches and leases on a server of its own.
func TestSuiteOnExternalEtcd(t *testing.T) {
	const endpoint = "http://127.0.0.1:23790"
	startEtcd(t, t.TempDir(), endpoint)
	child := exec.Command("/proc/self/exe", "-test.v", "-test.run",
		"^Test(Create|Update|List|Snapshot|Modify|Txn|OldRecords|NewerRecord|TooLarge|Lease|Watch|History)")
	child.Env = append(os.Environ(), externalEtcd+"="+endpoint)
	out, err := child.CombinedOutput()
	if passed := strings.Count(string(out), "\n--- PASS"); err != nil || passed < 12 {
		t.Fatalf("%d tests passed, %v: %s", passed, err, out)
	}
}

// TestExternalEtcdComesBack kills etcd under an open store.
func TestExternalEtcdComesBack(t *testing.T) {
	const endpoint = "http://127.0.0.1:23791"
	dir := t.TempDir()
	kill := startEtcd(t, dir, endpoint)
	s, err := store.Open(t.Context(), store.Options{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	table := store.NewTable[int](s, "n", 1)
	changes := table.Watch(t.Context(), 0)
	if _, err := table.Create(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = table.Get(ctx, "a")
	wantKind(t, err, api.Unavailable)
	if err == nil || !strings.Contains(err.Error(), "etcd "+endpoint) {
		t.Errorf("error %v does not name the endpoint", err)
	}
	startEtcd(t, dir, endpoint)
	if rec, err := table.Get(t.Context(), "a"); err != nil || rec.Value != 1 {
		t.Errorf("after etcd came back: %v, %v", rec, err)
	}
	if _, err := table.Create(t.Context(), "b", 2); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"a", "b"} {
		if c := <-changes; c.Key != want {
			t.Errorf("change of %q, want %q: %+v", c.Key, want, c)
		}
	}
}

// TestExternalEtcdByTLS speaks https, with a certificate on both sides.
func TestExternalEtcdByTLS(t *testing.T) {
	const endpoint = "https://127.0.0.1:23792"
	dir := t.TempDir()
	cert, key := dir+"/cert.pem", dir+"/key.pem"
	run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-subj", "/CN=etcd", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert)
	startEtcd(t, dir+"/data", endpoint)
	s, err := store.Open(t.Context(), store.Options{Endpoints: []string{endpoint}, TLS: store.TLS{CA: cert, Cert: cert, Key: key}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := store.NewTable[int](s, "n", 1).Create(t.Context(), "a", 1); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = store.Open(ctx, store.Options{Endpoints: []string{endpoint}})
	wantKind(t, err, api.Unavailable) // whom does nobody here know
}
