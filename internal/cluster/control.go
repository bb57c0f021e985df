package cluster

import (
	"context"
	"time"

	"polder/api"
	"polder/internal/store"
)

// controlEvery is how often the leader looks at the cluster when nothing happens, and others whether there is a leader.
const controlEvery = 3 * time.Second

// control tends the cluster while this host leads, until the Cluster is closed. What is to be done is found out anew each
// time, so that it does not matter who led before and how far that one came.
func (c *Cluster) control() {
	changes := c.Watch(c.ctx)
	ticker := time.NewTicker(controlEvery)
	defer ticker.Stop()
	for c.ctx.Err() == nil {
		changed, err := c.controlOnce(c.ctx)
		switch {
		case c.ctx.Err() != nil:
			return
		case err != nil:
			c.log.Warn("the cluster can not be tended", "error", err)
		case changed:
			continue // there may be more to do
		}
		select {
		case <-c.ctx.Done():
		case <-changes:
		case <-ticker.C:
		}
	}
}

// controlOnce does the next thing that there is to do; changed says that there was one.
func (c *Cluster) controlOnce(ctx context.Context) (changed bool, err error) {
	leads, err := c.lead(ctx)
	if err != nil || !leads {
		return false, err
	}
	list, err := c.Hosts(ctx)
	if err != nil {
		return false, err
	}
	if err := c.noteAbsences(ctx, list); err != nil {
		return false, err
	}
	if c.identity.now().External {
		return false, nil
	}
	members, err := c.store.Members(ctx)
	if err != nil {
		return false, err
	}
	now := situation{self: c.Name(), hosts: list, members: members, now: time.Now(), patience: c.identity.options.patience()}
	do := next(now)
	if do.verb == "remove" && len(now.voters())%2 == 1 && now.alive(do.name) && !c.settledOn(do, now.now) {
		return false, nil
	}
	return c.act(ctx, do, list)
}

// settleTime is how long there must be a reason to have fewer members: often a host is removed to make room for another one, and
// all members would change twice. With an even number of votes there is no waiting: that is no place to stay.
const settleTime = time.Minute

// settledOn says whether the same has been wanted all the time since a while ago. Only control uses it.
func (c *Cluster) settledOn(do action, now time.Time) bool {
	if c.wanted != do {
		c.wanted, c.wantedSince = do, now
	}
	return now.Sub(c.wantedSince) >= settleTime
}

func (c *Cluster) act(ctx context.Context, do action, list []Status) (changed bool, err error) {
	switch do.verb {
	case "add":
		host, ok := situation{hosts: list}.host(do.name)
		if !ok {
			return false, nil
		}
		err = c.store.AddMember(ctx, do.name, sibling(host.Address, memberOffset))
	case "promote":
		err = c.store.PromoteMember(ctx, do.name)
		if api.KindOf(err) == api.Precondition { // it has not caught up
			return false, nil
		}
	case "remove":
		err = c.store.RemoveMember(ctx, do.name)
	default:
		return false, nil
	}
	if err == nil {
		c.log.Info("the store's members change", "change", do.verb, "host", do.name)
	}
	return err == nil, err
}

// lead says whether this host leads; it does when nobody else's lease holds the record.
func (c *Cluster) lead(ctx context.Context) (bool, error) {
	lease := c.ownLease()
	if lease == nil {
		return false, nil
	}
	rec, err := c.leaders.Get(ctx, "cluster")
	switch {
	case api.KindOf(err) == api.NotFound:
		_, err = c.leaders.Create(ctx, "cluster", leadership{c.Name()}, store.WithLease(lease))
		if api.KindOf(err) == api.Exists {
			return false, nil
		}
	case err != nil:
	case rec.Value.Host != c.Name():
		return false, nil
	case c.ledBy() != lease: // of this host's lease before this one, which runs out
		if _, err = c.leaders.Update(ctx, rec, store.WithLease(lease)); api.KindOf(err) == api.NotFound || api.KindOf(err) == api.Conflict {
			return false, nil
		}
	}
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leading = lease
	return true, nil
}

// ledBy is the lease under which this host wrote that it leads.
func (c *Cluster) ledBy() *store.Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leading
}

// noteAbsences writes down since when hosts are not alive, and forgets it when they are.
func (c *Cluster) noteAbsences(ctx context.Context, list []Status) error {
	known, err := c.absences.List(ctx)
	if err != nil {
		return err
	}
	noted := map[string]bool{}
	for _, rec := range known {
		noted[rec.Key] = true
	}
	for _, s := range list {
		switch {
		case !s.Alive && time.Since(s.JoinedAt) < leaseTime: // it is just coming up
		case !s.Alive && !noted[s.Name]:
			c.log.Warn("a host is down or cut off", "host", s.Name)
			_, err = c.absences.Put(ctx, s.Name, absence{Since: time.Now().UTC()})
		case s.Alive && noted[s.Name]:
			c.log.Info("a host is back", "host", s.Name)
			_, err = c.store.Txn(ctx, c.absences.OpClear(s.Name))
		}
		if err != nil {
			return err
		}
		delete(noted, s.Name)
	}
	for name := range noted { // hosts that were removed
		if _, err := c.store.Txn(ctx, c.absences.OpClear(name)); err != nil {
			return err
		}
	}
	return nil
}
