package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"sync/atomic"
	"time"

	"polder/api"
	"polder/internal/store"
)

// credentials are a host's certificate as it is now and the CA of its cluster: what TLS connections are made with. The
// certificate can be replaced while connections are made.
type credentials struct {
	files store.TLS
	roots *x509.CertPool
	pair  atomic.Pointer[tls.Certificate]
}

func readCredentials(files store.TLS) (*credentials, error) {
	c := &credentials{files: files, roots: x509.NewCertPool()}
	text, err := os.ReadFile(files.CA)
	if err != nil {
		return nil, api.Errorf(api.Internal, "read the cluster's CA: %w", err)
	}
	if !c.roots.AppendCertsFromPEM(text) {
		return nil, api.Errorf(api.Internal, "read the cluster's CA: no certificate in %s", files.CA)
	}
	return c, c.reload()
}

// reload reads the certificate again.
func (c *credentials) reload() error {
	pair, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return api.Errorf(api.Internal, "read this host's certificate: %w", err)
	}
	c.pair.Store(&pair)
	return nil
}

// due is when the certificate is to be renewed: at two thirds of its life.
func (c *credentials) due() time.Time {
	leaf := c.pair.Load().Leaf
	issued := leaf.NotBefore.Add(clockSkew)
	return issued.Add(leaf.NotAfter.Sub(issued) * 2 / 3)
}

// server is how the peer port talks: a certificate is not asked of whoever comes to join, but one that is shown must be good.
func (c *credentials) server() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      c.roots,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.pair.Load(), nil },
		NextProtos:     []string{"http/1.1"}, // sessions take over their connection, which HTTP/2 has not
	}
}

// client is how this host talks to the peer port of host, which must be the one with that id.
func (c *credentials) client(host Host) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    c.roots,
		ServerName: host.Name,
		NextProtos: []string{"http/1.1"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.pair.Load(), nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			if subjectOf(state.PeerCertificates[0]).ID != host.ID {
				return api.Errorf(api.Unavailable, "another machine named %q answers there", host.Name)
			}
			return nil
		},
	}
}

// subjectOf says which host a verified certificate is for.
func subjectOf(leaf *x509.Certificate) subject {
	return subject{Name: leaf.Subject.CommonName, ID: leaf.Subject.SerialNumber}
}

// certificateIn finds the first certificate of a PEM text.
func certificateIn(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, api.Errorf(api.Invalid, "no certificate in PEM form")
	}
	return x509.ParseCertificate(block.Bytes)
}
