package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"polder/api"
)

// Peering makes the embedded member one of several hosts'. A member alone that is opened with a Peering keeps its data and
// can be joined from then on; one whose addresses have changed tells the others.
type Peering struct {
	// Name of the member: the host's.
	Name string
	// Peer and Client are IP:PORT to listen at and to advertise: Peer for the other members, Client for clients.
	Peer, Client string
	// TLS is of this host: all three files. The certificate has to be good for server and client authentication and for
	// the IP addresses of Peer and Client. Both sides of every connection must have one that the CA has signed. Cert and
	// Key are read anew for each handshake.
	TLS TLS
	// Join holds the members of the running cluster by name, with their Peer addresses, this one included, when this
	// member is new in it (see AddMember). It has no effect once the member has data. nil: the member was in the cluster
	// before, or it is the first.
	Join map[string]string
}

// A cluster's members hear from their leader every tick and choose a new one when they have not for an election timeout: one
// to two seconds after a leader died the others can write again. A member alone has nobody to hear from: slow ticks spare an
// idle host's processor.
const (
	tickMS, electionMS           = 100, 1000
	lonelyTickMS, lonelyElection = 500, 5000
)

// maxLearners is how many hosts may be on their way to become members at a time: enough to go from one to five at once.
const maxLearners = 4

func (p *Peering) check() error {
	for what, address := range map[string]string{"peer": p.Peer, "client": p.Client} {
		if err := checkAddress(address); err != nil {
			return api.Errorf(api.Invalid, "store's %s address %q: %w", what, address, err)
		}
	}
	if p.Name == "" {
		return api.Errorf(api.Invalid, "store's member has no name")
	}
	if p.TLS.CA == "" || p.TLS.Cert == "" || p.TLS.Key == "" {
		return api.Errorf(api.Invalid, "store's member %q: want a CA, a certificate and its key", p.Name)
	}
	_, err := p.TLS.config()
	return err
}

// port at which members reach each other.
func (p *Peering) port() int { return int(netip.MustParseAddrPort(p.Peer).Port()) }

func checkAddress(address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || at.Port() == 0 || at.Addr().IsUnspecified() {
		return fmt.Errorf("want IP:PORT by which other hosts reach it")
	}
	return nil
}

// configure makes the member listen for others.
func (p *Peering) configure(c *embed.Config) {
	c.Name = p.Name
	c.TickMs, c.ElectionMs = tickMS, electionMS
	c.ListenPeerUrls, c.AdvertisePeerUrls = secureURLs(p.Peer), secureURLs(p.Peer)
	c.ListenClientUrls, c.AdvertiseClientUrls = secureURLs(p.Client), secureURLs(p.Client)
	// Whose certificate the CA has signed is a host of the cluster, by whichever of its addresses it comes: SANs are checked
	// of servers only.
	info := transport.TLSInfo{
		TrustedCAFile: p.TLS.CA, CertFile: p.TLS.Cert, KeyFile: p.TLS.Key, ClientCertAuth: true, SkipClientSANVerify: true,
	}
	c.PeerTLSInfo, c.ClientTLSInfo = info, info
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	if p.Join != nil {
		c.ClusterState = embed.ClusterStateFlagExisting
		var members []string
		for name, peer := range p.Join {
			members = append(members, name+"="+secureURL(peer))
		}
		slices.Sort(members)
		c.InitialCluster = strings.Join(members, ",")
	}
}

func secureURL(address string) string { return "https://" + address }

func secureURLs(address string) []url.URL { return []url.URL{{Scheme: "https", Host: address}} }

// addressOf is the first of a member's URLs without its scheme.
func addressOf(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	_, address, _ := strings.Cut(urls[0], "://")
	return address
}

// newClusterToken makes the identity of a cluster, which is a hash of this and of where its first member listens, unlike any
// other: members of two clusters that reach each other by mistake then refuse to talk.
func newClusterToken() string { return "polder-" + rand.Text() }

// announce brings the address that the membership has of this member up to date.
func (m *member) announce(ctx context.Context, p *Peering) error {
	id := m.etcd.Server.MemberID()
	self := m.etcd.Server.Cluster().Member(id)
	if self == nil || slices.Equal(self.PeerURLs, []string{secureURL(p.Peer)}) {
		return nil
	}
	if _, err := m.client.MemberUpdate(ctx, uint64(id), []string{secureURL(p.Peer)}); err != nil {
		return fmt.Errorf("change its address to %s: %w", p.Peer, err)
	}
	return nil
}
