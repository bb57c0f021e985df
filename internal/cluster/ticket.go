package cluster

import (
	"context"
	"net/netip"
	"time"

	"polder/api"
)

const (
	defaultExpiry = time.Hour
	// keepTickets is how long a token is remembered after its end, for a better answer than that it is unknown.
	keepTickets = 24 * time.Hour
)

// JoinToken makes a token for one more host. A host that was alone is opened for others first: it gets an address and a
// certificate, and the store must be opened anew; see Reopen.
func (c *Cluster) JoinToken(ctx context.Context, req api.JoinTokenRequest) (api.JoinToken, error) {
	life := time.Duration(req.ExpiresSeconds) * time.Second
	if life == 0 {
		life = defaultExpiry
	}
	if life < 0 {
		return api.JoinToken{}, api.Errorf(api.Invalid, "make join token: it would expire before it can be used")
	}
	if c.identity.now().External {
		return api.JoinToken{}, api.Errorf(api.Precondition, "make join token: this cluster keeps its store in an external etcd: start the other host with the same --etcd, and no token")
	}
	ca, err := readAuthority(ctx, c.store)
	if err != nil {
		return api.JoinToken{}, err
	}
	if err := c.open(ctx, ca, req.Address); err != nil {
		return api.JoinToken{}, err
	}
	list, err := c.Hosts(ctx)
	if err != nil {
		return api.JoinToken{}, err
	}
	t := token{Secret: newSecret(), Pin: ca.pin(), Addresses: c.tokenAddresses(list)}
	expires := time.Now().Add(life).UTC().Truncate(time.Second)
	if err := c.forgetTickets(ctx); err != nil {
		return api.JoinToken{}, err
	}
	if _, err := c.tickets.Create(ctx, t.key(), ticket{ExpiresAt: expires}); err != nil {
		return api.JoinToken{}, err
	}
	return api.JoinToken{
		Token: t.String(), ExpiresAt: expires,
		Advice: Advice(append(list, Status{Alive: true, Host: Host{Role: api.RoleClient}})),
	}, nil
}

// tokenAddresses are where a joining host is to knock: here first, then at others that are alive.
func (c *Cluster) tokenAddresses(list []Status) []netip.AddrPort {
	var addresses []netip.AddrPort
	add := func(address string) {
		if at, err := netip.ParseAddrPort(address); err == nil && len(addresses) < mostAddresses {
			addresses = append(addresses, at)
		}
	}
	add(c.identity.now().Address)
	for _, s := range list {
		if s.Alive && s.Name != c.Name() {
			add(s.Address)
		}
	}
	return addresses
}

// open makes a host that was alone the first of a cluster. Idempotent.
func (c *Cluster) open(ctx context.Context, ca authority, said string) error {
	c.opening.Lock()
	defer c.opening.Unlock()
	k := c.identity.now()
	if k.Address != "" {
		if said != "" && said != k.Address && said != netip.MustParseAddrPort(k.Address).Addr().String() {
			return api.Errorf(api.Precondition, "make join token: this host is at %s already; leave --address away", k.Address)
		}
		return nil
	}
	address, err := chooseAddress(said, netip.Addr{})
	if err != nil {
		return err
	}
	k.Address, k.Member = address, !k.External
	if !k.External {
		k.Endpoints = []string{"https://" + sibling(address, clientOffset)}
	}
	pair, err := ca.pair(subject{k.Name, k.ID, netip.MustParseAddrPort(address).Addr()}, time.Now(), c.identity.options.life())
	if err != nil {
		return err
	}
	if err := writeIdentityDir(c.identity.options.Data, k, ca.pem(), pair); err != nil {
		return err
	}
	c.identity.set(k)
	if err := c.register(ctx); err != nil {
		return err
	}
	c.log.Info("this host opens for others", "address", address)
	if !k.External {
		c.wantReopen()
	}
	return nil
}

// forgetTickets deletes tokens whose end is long past.
func (c *Cluster) forgetTickets(ctx context.Context) error {
	recs, err := c.tickets.List(ctx)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		if time.Since(rec.Value.ExpiresAt) < keepTickets {
			continue
		}
		if err := c.tickets.DeleteIf(ctx, rec); err != nil && api.KindOf(err) == api.Internal {
			return err
		}
	}
	return nil
}
