package cluster

import (
	"context"
	"net/netip"
	"path/filepath"
	"time"

	"polder/api"
)

// How often it is looked whether the certificate is to be renewed: often enough for one with a short life, and to get over some
// hours without a store.
const (
	renewChecks  = 20 // in a life
	renewAtLeast = time.Hour
)

// renew keeps this host's certificate good until the Cluster is closed.
func (c *Cluster) renew() {
	every := min(renewAtLeast, c.identity.options.life()/renewChecks)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		if err := c.renewWhenDue(c.ctx, time.Now()); err != nil && c.ctx.Err() == nil {
			c.log.Warn("this host's certificate is not renewed", "ends", c.credentials.Load().pair.Load().Leaf.NotAfter, "error", err)
		}
	}
}

// renewWhenDue makes a new key and certificate when two thirds of its life are over, or this host's address has changed. New
// connections use it at once, also those of the store.
func (c *Cluster) renewWhenDue(ctx context.Context, now time.Time) error {
	k, credentials := c.identity.now(), c.credentials.Load()
	at, err := netip.ParseAddrPort(k.Address)
	if err != nil {
		return api.Errorf(api.Internal, "renew certificate: address %q: %w", k.Address, err)
	}
	leaf := credentials.pair.Load().Leaf
	if now.Before(credentials.due()) && leaf.VerifyHostname(at.Addr().String()) == nil {
		return nil
	}
	ca, err := readAuthority(ctx, c.store)
	if err != nil {
		return err
	}
	pair, err := ca.pair(subject{k.Name, k.ID, at.Addr()}, now, c.identity.options.life())
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(clusterDir(c.identity.options.Data), "host.pem"), pair); err != nil {
		return api.Errorf(api.Internal, "keep this host's new certificate: %w", err)
	}
	c.log.Info("this host's certificate was renewed", "ends", now.Add(c.identity.options.life()))
	return credentials.reload()
}
