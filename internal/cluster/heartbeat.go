package cluster

import (
	"context"
	"time"

	"polder/api"
	"polder/internal/store"
)

const (
	// leaseTime after which a host that says nothing counts as unreachable.
	leaseTime = 10 * time.Second
	// figuresEvery is how often figures are measured. They are written when one of them has changed by a twentieth: each write
	// costs every member a sync of its disk, and a bit of the store's history.
	figuresEvery = 5 * time.Second
	retryEvery   = time.Second
)

// beat keeps this host's heartbeat until the Cluster is closed. It is left to run out then: a daemon that is back before nobody
// notices.
func (c *Cluster) beat() {
	for c.ctx.Err() == nil {
		if err := c.beatOnce(c.ctx); err != nil && c.ctx.Err() == nil {
			c.log.Warn("this host's heartbeat stopped", "error", err)
		}
		sleep(c.ctx, retryEvery)
	}
}

// beatOnce beats until its lease is lost.
func (c *Cluster) beatOnce(ctx context.Context) error {
	lease, err := c.store.Lease(ctx, leaseTime)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended, err := lease.KeepAlive(ctx)
	if err != nil {
		return err
	}
	c.setLease(lease)
	defer c.setLease(nil)
	ticker := time.NewTicker(figuresEvery)
	defer ticker.Stop()
	var last heartbeat
	for {
		now := heartbeat{ID: c.identity.now().ID}
		if now.Figures, err = c.facts.Figures(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("this host's figures can not be measured", "error", err)
		}
		if last.ID == "" || now.Figures.differ(last.Figures) {
			if _, err := c.heartbeats.Put(ctx, c.Name(), now, store.WithLease(lease)); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			return api.Errorf(api.Unavailable, "renew lease: the store did not answer in time")
		case <-ticker.C:
		}
	}
}

// differ says whether one of the figures is more than a twentieth off.
func (f Figures) differ(old Figures) bool {
	off := func(a, b api.Bytes) bool { return max(a-b, b-a)*20 > b }
	return off(f.PoolTotal, old.PoolTotal) || off(f.PoolFree, old.PoolFree) || off(f.MemoryFree, old.MemoryFree)
}

func (c *Cluster) setLease(l *store.Lease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lease = l
}

func (c *Cluster) ownLease() *store.Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lease
}

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
