package cluster

import (
	"context"
	"time"

	"polder/api"
	"polder/internal/store"
)

// removePatience is how long a membership that can not be given up now is tried again.
const removePatience = 10 * time.Second

// Remove takes a host out of the cluster: its membership in the store, its record, its claims on being alive and on leading.
// Its certificate opens no peer port any more. What it had in the cluster's other records is the caller's. A host that is alive
// needs force; it then notices, and forgets the cluster. Errors: api.NotFound, api.Precondition.
func (c *Cluster) Remove(ctx context.Context, name string, force bool) error {
	s, err := c.Host(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case name == c.Name():
		return api.Errorf(api.Precondition, "remove host %q: it is the one that answers: ask another host, for example by POLDER_HOST", name)
	case s.Alive && !force:
		return api.Errorf(api.Precondition, "remove host %q: it is alive: stop polder there first, or use --force", name)
	}
	if !c.identity.now().External {
		if err := c.leaveStore(ctx, name); err != nil {
			return err
		}
	}
	if lead, err := c.leaders.Get(ctx, "cluster"); err == nil && lead.Value.Host == name {
		if err := c.leaders.DeleteIf(ctx, lead); err != nil && api.KindOf(err) == api.Internal {
			return err
		}
	}
	_, err = c.store.Txn(ctx, c.hosts.OpClear(name), c.heartbeats.OpClear(name), c.absences.OpClear(name))
	if err == nil {
		c.log.Info("a host was removed from the cluster", "host", name)
	}
	return err
}

// leaveStore takes a host out of the store's members, unless it is the last one.
func (c *Cluster) leaveStore(ctx context.Context, name string) error {
	members, err := c.store.Members(ctx)
	if err != nil {
		return err
	}
	s := situation{members: members}
	if !s.isMember(name) {
		return nil
	}
	if s.isVoter(name) && len(s.voters()) == 1 {
		return api.Errorf(api.Precondition, "remove host %q: it keeps the only copy of the store: with three hosts or more in the cluster the copies move by themselves within a minute", name)
	}
	if s.isVoter(name) && !s.majority(func(v store.Member) bool { return v.Name != name }, 0) {
		return api.Errorf(api.Precondition, "remove host %q: of the other members of the store too few answer to go on without it: bring one of them back first; see: polder host list", name)
	}
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	for {
		err := c.store.RemoveMember(ctx, name)
		if api.KindOf(err) != api.Precondition || ctx.Err() != nil {
			return err
		}
		sleep(ctx, retryEvery) // members that came up within the last seconds do not count yet
	}
}
