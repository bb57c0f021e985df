package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"polder/api"
	"polder/internal/store"
)

const (
	// joinPatience is how long a cluster that does not answer is tried: its first host may just be opening for others.
	joinPatience = 30 * time.Second
	joinTimeout  = 20 * time.Second // of one try
)

// applicant is a host on its way into a cluster. Its key and id are on disk before it asks, so that a daemon that is killed
// at any moment asks again as the same one: its token is not lost.
type applicant struct {
	options Options
	token   token
	id      string
	key     *ecdsa.PrivateKey
}

func joiningPath(data string) string { return filepath.Join(data, "joining.pem") }

// join makes this host, which must have no VEs and images of its own, one of a cluster.
func join(ctx context.Context, o Options) (*Identity, error) {
	t, err := parseToken(o.Join)
	if err != nil {
		return nil, err
	}
	if err := checkEmpty(ctx, o); err != nil {
		return nil, err
	}
	a := applicant{options: o, token: t}
	if err := a.prepare(); err != nil {
		return nil, err
	}
	i, err := a.apply(ctx)
	if api.KindOf(err) != api.Unavailable && api.KindOf(err) != api.Cancelled {
		err = errors.Join(err, removeIfThere(joiningPath(o.Data)))
	}
	return i, err
}

// checkEmpty refuses a host that has VEs or images: they would belong to nobody in the cluster's store.
func checkEmpty(ctx context.Context, o Options) error {
	if _, err := os.Stat(filepath.Join(o.storeDir(), "etcd")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	st, err := store.Open(ctx, store.Options{Dir: o.storeDir(), Log: o.Log})
	if err != nil {
		return err
	}
	defer st.Close()
	for _, noun := range []string{"ve", "image"} {
		recs, err := store.NewTable[json.RawMessage](st, noun, 1).List(ctx)
		if api.KindOf(err) == api.Unsupported { // of a newer form, so there is one
			recs, err = make([]store.Record[json.RawMessage], 1), nil
		}
		if err != nil {
			return err
		}
		if len(recs) > 0 {
			return api.Errorf(api.Precondition, "join: this host has %ss of its own, which the cluster would not know: start it without --join, then move them to the cluster by export and import, or delete them; it joins when it has none", noun)
		}
	}
	return nil
}

// prepare finds the key and id of an earlier try, or makes them.
func (a *applicant) prepare() error {
	path := joiningPath(a.options.Data)
	if text, err := os.ReadFile(path); err == nil {
		if block, _ := pem.Decode(text); block != nil {
			a.id = block.Headers["id"]
			a.key, err = x509.ParseECPrivateKey(block.Bytes)
			if err == nil && a.id != "" {
				return nil
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return api.Errorf(api.Internal, "join: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err == nil {
		a.id, a.key = newID(), key
		err = writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"id": a.id}, Bytes: der}))
	}
	if err != nil {
		return api.Errorf(api.Internal, "join: %w", err)
	}
	return nil
}

// apply asks the cluster's hosts in turn until one answers.
func (a *applicant) apply(ctx context.Context) (*Identity, error) {
	deadline := time.Now().Add(joinPatience)
	for {
		var err error
		for _, at := range a.token.Addresses {
			var i *Identity
			if i, err = a.knock(ctx, at); err == nil || api.KindOf(err) != api.Unavailable {
				return i, err
			}
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, err
		}
		a.options.Log.Info("the cluster does not answer yet", "error", err)
		sleep(ctx, retryEvery)
	}
}

// knock asks one host to be let in.
func (a *applicant) knock(ctx context.Context, at netip.AddrPort) (*Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	dialer := &net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "join: no host of the cluster answers at %s: %w", at, err)
	}
	defer conn.Close()
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	address, err := chooseAddress(a.options.Address, local)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, a.pinned(at))
	if err := secure.HandshakeContext(ctx); err != nil {
		var known *api.Error
		if errors.As(err, &known) {
			return nil, known
		}
		return nil, api.Errorf(api.Unavailable, "join: no host of the cluster answers at %s: %w", at, err)
	}
	answer, err := a.ask(ctx, secure, address)
	if err != nil {
		return nil, err
	}
	return a.enter(ctx, answer, address)
}

// pinned trusts exactly the CA that the token names.
func (a *applicant) pinned(at netip.AddrPort) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection does, by the pin instead of a name
		NextProtos:         []string{"http/1.1"},
		VerifyConnection: func(state tls.ConnectionState) error {
			for _, ca := range state.PeerCertificates[1:] {
				if sha256.Sum256(ca.Raw) == a.token.Pin {
					return verifyHost(state.PeerCertificates[0], ca)
				}
			}
			return api.Errorf(api.Precondition, "join: at %s is another cluster than the one that the token is for: its CA is not the token's", at)
		},
	}
}

func verifyHost(leaf, ca *x509.Certificate) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return api.Errorf(api.Precondition, "join: the cluster's certificates are good from %s to %s, and here it is %s: set this host's clock, for example with: timedatectl set-ntp true",
			leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
	}
	if err != nil {
		return api.Errorf(api.Precondition, "join: what answers is no host of the cluster: %w", err)
	}
	return nil
}

// ask sends the request over a connection that is secure already.
func (a *applicant) ask(ctx context.Context, conn net.Conn, address string) (*joinAnswer, error) {
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, a.key)
	if err != nil {
		return nil, api.Errorf(api.Internal, "join: %w", err)
	}
	o := a.options
	text, err := json.Marshal(joinRequest{
		Version: joinVersion, Polder: o.Version, Secret: a.token.Secret[:], Name: o.Name, ID: a.id, Address: address,
		Site: o.Site, Witness: o.Witness, Request: request, Time: time.Now().UTC(),
	})
	if err != nil {
		return nil, api.Errorf(api.Internal, "join: %w", err)
	}
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }, DisableKeepAlives: true}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://polder"+joinPath, bytes.NewReader(text))
	if err != nil {
		return nil, api.Errorf(api.Internal, "join: %w", err)
	}
	res, err := transport.RoundTrip(post)
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "join: the cluster's answer did not come: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "join: the cluster's answer did not come: %w", err)
	}
	return readAnswer(res.StatusCode, body)
}

func readAnswer(status int, body []byte) (*joinAnswer, error) {
	if status != http.StatusOK {
		var p api.Problem
		if json.Unmarshal(body, &p) == nil && p.Kind != "" {
			return nil, p.Err()
		}
		return nil, api.Errorf(api.Unsupported, "join: the cluster answers %d, which this version of polder does not understand: use the cluster's version here", status)
	}
	var answer joinAnswer
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Endpoints) == 0 {
		return nil, api.Errorf(api.Unsupported, "join: this version of polder does not understand the cluster's answer: use the cluster's version here")
	}
	return &answer, nil
}

// enter keeps what the cluster answered. From the moment on at which DATA/cluster is there this host belongs to the cluster.
func (a *applicant) enter(ctx context.Context, answer *joinAnswer, address string) (*Identity, error) {
	ca, err := certificateIn(answer.CA)
	if err != nil || sha256.Sum256(ca.Raw) != a.token.Pin {
		return nil, api.Errorf(api.Precondition, "join: the cluster's answer has another CA than the token")
	}
	key, err := keyPEM(a.key)
	if err != nil {
		return nil, err
	}
	o := a.options
	k := kept{Name: o.Name, ID: a.id, Address: address, Site: o.Site, Witness: o.Witness, Endpoints: answer.Endpoints}
	pair := append(bytes.Clone(answer.Chain), key...)
	if _, err := tls.X509KeyPair(pair, pair); err != nil {
		return nil, api.Errorf(api.Internal, "join: the certificate that came is not for this host's key: %w", err)
	}
	if err := o.Leave(ctx); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(o.storeDir()); err != nil { // it has no VEs and no images
		return nil, api.Errorf(api.Internal, "join: %w", err)
	}
	if err := writeIdentityDir(o.Data, k, answer.CA, pair); err != nil {
		return nil, err
	}
	o.Log.Info("this host belongs to a cluster now", "host", o.Name, "address", address)
	if answer.Advice != "" {
		o.Log.Warn("advice", "text", answer.Advice)
	}
	return newIdentity(o, k), removeIfThere(joiningPath(o.Data))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.Internal, "remove what is over: %w", err)
	}
	return nil
}
