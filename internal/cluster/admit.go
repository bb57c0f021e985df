package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/netip"
	"time"

	"polder/api"
)

// joinVersion of the messages below. A host with another one can't join.
const joinVersion = 1

// mostJoinBytes bounds what is read of a stranger.
const mostJoinBytes = 64 << 10

// joinRequest is what a host without a certificate sends.
type joinRequest struct {
	Version int       `json:"version"`
	Polder  string    `json:"polder"` // of the joining host
	Secret  []byte    `json:"secret"`
	Name    string    `json:"name"`
	ID      string    `json:"id"`
	Address string    `json:"address"`
	Site    string    `json:"site,omitempty"`
	Witness bool      `json:"witness,omitempty"`
	Request []byte    `json:"certificate_request_der"`
	Time    time.Time `json:"time"`
}

// joinAnswer is what it gets.
type joinAnswer struct {
	CA        []byte   `json:"ca_pem"`
	Chain     []byte   `json:"chain_pem"`
	Endpoints []string `json:"endpoints"`
	Advice    string   `json:"advice,omitempty"`
}

// ticket is the record "jointoken", under the hash of its secret.
type ticket struct {
	ExpiresAt time.Time `json:"expires_at"`
	// Used is the hash of the public key that it let in: that host may ask again, when it was cut off before it had the answer.
	Used string `json:"used,omitempty"`
	Host string `json:"host,omitempty"` // that it let in
}

// admitJoin answers a host that has a token and no certificate yet.
func (c *Cluster) admitJoin(w http.ResponseWriter, r *http.Request) {
	var req joinRequest
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, mostJoinBytes)).Decode(&req)
	if err != nil {
		writeProblem(w, api.Errorf(api.Invalid, "join: not a join request"))
		return
	}
	answer, err := c.admit(r.Context(), req)
	if err != nil {
		c.log.Warn("a host was not let into the cluster", "remote", r.RemoteAddr, "host", req.Name, "error", err)
		writeProblem(w, err)
		return
	}
	c.log.Info("a host was let into the cluster", "host", req.Name, "address", req.Address)
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer) //nolint:errcheck // it asks again
}

// admit lets a host in. That its token is used and that it belongs to the cluster is one write.
func (c *Cluster) admit(ctx context.Context, req joinRequest) (*joinAnswer, error) {
	if len(req.Secret) != len(token{}.Secret) {
		return nil, api.Errorf(api.Invalid, "join: not a join request")
	}
	rec, err := c.tickets.Get(ctx, token{Secret: [16]byte(req.Secret)}.key())
	if api.KindOf(err) == api.NotFound {
		return nil, api.Errorf(api.Precondition, "join: this cluster gave out no such token, or it expired long ago: make a new one with: polder host token")
	}
	if err != nil {
		return nil, err
	}
	public, err := req.check(time.Now(), c.identity.options.Version)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(public)
	print := hex.EncodeToString(sum[:])
	switch {
	case rec.Value.Used != "" && rec.Value.Used != print:
		return nil, api.Errorf(api.Precondition, "join: the token was used already, by host %q: make a new one with: polder host token", rec.Value.Host)
	case time.Now().After(rec.Value.ExpiresAt):
		return nil, api.Errorf(api.Precondition, "join: the token expired at %s: make a new one with: polder host token", rec.Value.ExpiresAt.Format(time.RFC3339))
	}
	answer, err := c.prepareAnswer(ctx, req)
	if err != nil {
		return nil, err
	}
	rec.Value.Used, rec.Value.Host = print, req.Name
	_, err = c.store.Txn(ctx, c.tickets.OpUpdate(rec), c.hosts.OpCreate(req.Name, Host{
		Name: req.Name, ID: req.ID, Address: req.Address, Site: req.Site, Version: req.Polder, Role: role(req.Witness, false), JoinedAt: time.Now().UTC(),
	}))
	if api.KindOf(err) == api.Exists {
		return answer, c.sameHost(ctx, req)
	}
	return answer, err
}

// sameHost says whether the host of that name is the very one that asks, once more.
func (c *Cluster) sameHost(ctx context.Context, req joinRequest) error {
	rec, err := c.hosts.Get(ctx, req.Name)
	if err != nil || rec.Value.ID == req.ID {
		return err
	}
	return api.Errorf(api.Exists, "join: the cluster has a host %q already (at %s): give this one another name with --name, or, if that one is gone for good, first: polder host remove %s",
		req.Name, rec.Value.Address, req.Name)
}

// check reads what a host says about itself, and returns its public key.
func (req joinRequest) check(now time.Time, version string) (public []byte, err error) {
	if req.Version != joinVersion {
		return nil, api.Errorf(api.Unsupported, "join: the joining host runs polder %s, which joins by version %d of the protocol; this cluster runs %s, which has version %d: use the cluster's version there",
			req.Polder, req.Version, version, joinVersion)
	}
	if err := api.CheckName("host", req.Name); err != nil {
		return nil, err
	}
	if at, err := netip.ParseAddrPort(req.Address); err != nil || at.Addr().IsUnspecified() {
		return nil, api.Errorf(api.Invalid, "join: address %q: want IP:PORT", req.Address)
	}
	if len(req.ID) == 0 || len(req.ID) > 64 || len(req.Site) > 63 || len(req.Polder) > 128 {
		return nil, api.Errorf(api.Invalid, "join: id, site or version is missing or too long")
	}
	if skew := req.Time.Sub(now).Round(time.Second); skew.Abs() > clockSkew/2 {
		return nil, api.Errorf(api.Precondition, "join: the clock of host %q is %s off the cluster's: set it there, for example with: timedatectl set-ntp true", req.Name, skew)
	}
	request, err := x509.ParseCertificateRequest(req.Request)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		return nil, api.Errorf(api.Invalid, "join: certificate request: %w", err)
	}
	if _, ok := request.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, api.Errorf(api.Invalid, "join: certificate request: want an ECDSA key")
	}
	return request.RawSubjectPublicKeyInfo, nil
}

func (c *Cluster) prepareAnswer(ctx context.Context, req joinRequest) (*joinAnswer, error) {
	ca, err := readAuthority(ctx, c.store)
	if err != nil {
		return nil, err
	}
	request, err := x509.ParseCertificateRequest(req.Request)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "join: certificate request: %w", err)
	}
	chain, err := ca.sign(subject{req.Name, req.ID, netip.MustParseAddrPort(req.Address).Addr()}, request.PublicKey, time.Now(), c.identity.options.life())
	if err != nil {
		return nil, err
	}
	list, err := c.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	k := c.identity.now()
	answer := &joinAnswer{CA: ca.pem(), Chain: chain, Endpoints: k.Endpoints}
	answer.Advice = Advice(append(list, Status{Host: Host{Name: req.Name, Role: role(req.Witness, false)}, Alive: true}))
	return answer, nil
}

func role(witness, member bool) api.HostRole {
	switch {
	case witness:
		return api.RoleWitness
	case member:
		return api.RoleMember
	}
	return api.RoleClient
}
