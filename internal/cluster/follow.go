package cluster

import (
	"context"
	"os"
	"slices"
	"time"

	"polder/api"
	"polder/internal/store"
)

// followEvery is how often a host looks what its part in the store is.
const followEvery = 2 * time.Second

// follow makes this host what the membership says it is, until the Cluster is closed: it runs a member beside its store when it
// has become one, drops the copy when it is none any more, and knows where the members are.
func (c *Cluster) follow() {
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	for c.ctx.Err() == nil {
		if err := c.followOnce(c.ctx); err != nil && c.ctx.Err() == nil {
			c.log.Warn("this host's part in the store can not be kept up", "error", err)
		}
		select {
		case <-c.ctx.Done():
		case <-ticker.C:
		}
	}
}

func (c *Cluster) followOnce(ctx context.Context) error {
	if _, err := c.hosts.Get(ctx, c.Name()); api.KindOf(err) == api.NotFound {
		c.log.Warn("this host was removed from its cluster")
		c.wantReopen()
		return nil
	}
	if c.identity.now().External {
		return nil
	}
	members, err := c.store.Members(ctx)
	if err != nil {
		return err
	}
	if err := c.keepEndpoints(members); err != nil {
		return err
	}
	i := slices.IndexFunc(members, func(m store.Member) bool { return m.Name == c.Name() })
	if i < 0 {
		return c.beNoMember(ctx)
	}
	return c.beMember(ctx, members[i], members)
}

// keepEndpoints remembers where the voting members are, in the store's client and on disk.
func (c *Cluster) keepEndpoints(members []store.Member) error {
	var endpoints []string
	for _, m := range members {
		if m.Client != "" && !m.Learner {
			endpoints = append(endpoints, "https://"+m.Client)
		}
	}
	slices.Sort(endpoints)
	if len(endpoints) == 0 || slices.Equal(endpoints, c.identity.now().Endpoints) {
		return nil
	}
	c.store.SetEndpoints(endpoints)
	return c.identity.change(func(k *kept) { k.Endpoints = endpoints })
}

// beMember runs this host's member beside a store that is a client. A store that was opened as a member is that already.
func (c *Cluster) beMember(ctx context.Context, self store.Member, members []store.Member) error {
	if !c.client {
		return nil
	}
	if !c.identity.beside.runs() {
		if err := c.runMember(ctx, self, members); err != nil {
			return err
		}
	}
	if self.Learner || c.identity.now().Member {
		return nil
	}
	if err := c.identity.change(func(k *kept) { k.Member = true }); err != nil {
		return err
	}
	c.log.Info("this host is a member of the store now")
	return c.register(ctx)
}

func (c *Cluster) runMember(ctx context.Context, self store.Member, members []store.Member) error {
	_, err := os.Stat(c.identity.options.storeDir())
	if os.IsNotExist(err) && self.Client != "" {
		// It ran once, and its copy is lost: what it has voted for may be lost with it, so it must not come back as the same one.
		c.log.Warn("this host's copy of the store is gone: it gives up its membership")
		return c.store.RemoveMember(ctx, c.Name())
	}
	join := map[string]string{}
	for _, m := range members {
		join[m.Name] = m.Peer
	}
	c.identity.beside.start(c.identity.memberOptions(join))
	return nil
}

// beNoMember stops this host's member, if it was one, and drops its copy of the store.
func (c *Cluster) beNoMember(ctx context.Context) error {
	if !c.client { // the store itself stops with it, see Failed
		return nil
	}
	c.identity.beside.stop()
	if _, err := os.Stat(c.identity.options.storeDir()); os.IsNotExist(err) && !c.identity.now().Member {
		return nil
	}
	c.log.Info("this host is no member of the store any more")
	if err := c.identity.demote(); err != nil {
		return err
	}
	return c.register(ctx)
}
