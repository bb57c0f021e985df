package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"time"

	"polder/api"
	"polder/internal/store"
)

const (
	authorityLife = 20 * 365 * 24 * time.Hour
	// defaultLife of a host's certificate. It is renewed at two thirds.
	defaultLife = 90 * 24 * time.Hour
	// clockSkew is how far clocks may be apart: certificates are valid from so long ago on.
	clockSkew = time.Hour
)

// authority is the cluster's CA: the record "clusterca", under the key "ca". Whoever reads it can make itself a host; only
// hosts can read the store.
type authority struct {
	Certificate []byte `json:"certificate_der"`
	Key         []byte `json:"key_der"`
}

func newAuthority(now time.Time) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "polder cluster"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	return authority{Certificate: der, Key: keyDER}, err
}

// readAuthority finds the cluster's CA, and makes it when there is none yet.
func readAuthority(ctx context.Context, st *store.Store) (authority, error) {
	table := store.NewTable[authority](st, "clusterca", 1)
	rec, err := table.Get(ctx, "ca")
	if api.KindOf(err) != api.NotFound {
		return rec.Value, err
	}
	fresh, err := newAuthority(time.Now())
	if err != nil {
		return fresh, api.Errorf(api.Internal, "make the cluster's CA: %w", err)
	}
	rec, err = table.Create(ctx, "ca", fresh)
	if api.KindOf(err) == api.Exists { // another host was first
		rec, err = table.Get(ctx, "ca")
	}
	return rec.Value, err
}

func (a authority) pin() [sha256.Size]byte { return sha256.Sum256(a.Certificate) }

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate})
}

// subject is what a certificate says about its host.
type subject struct {
	Name, ID string
	Address  netip.Addr
}

// sign makes a host's certificate for a public key: the leaf and the CA's, PEM.
func (a authority) sign(s subject, public any, now time.Time, life time.Duration) ([]byte, error) {
	ca, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return nil, api.Errorf(api.Internal, "read the cluster's CA: %w", err)
	}
	key, err := x509.ParseECPrivateKey(a.Key)
	if err != nil {
		return nil, api.Errorf(api.Internal, "read the cluster's CA: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: s.Name, SerialNumber: s.ID},
		DNSNames:              []string{s.Name},
		IPAddresses:           []net.IP{s.Address.AsSlice()},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(life),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, public, key)
	if err != nil {
		return nil, api.Errorf(api.Internal, "sign the certificate of host %q: %w", s.Name, err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), a.pem()...), nil
}

// pair makes a key and a certificate for it, as one PEM file.
func (a authority) pair(s subject, now time.Time, life time.Duration) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, api.Errorf(api.Internal, "make the key of host %q: %w", s.Name, err)
	}
	chain, err := a.sign(s, key.Public(), now, life)
	if err != nil {
		return nil, err
	}
	text, err := keyPEM(key)
	return append(chain, text...), err
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, api.Errorf(api.Internal, "encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) //nolint:errcheck // by its documentation it never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
