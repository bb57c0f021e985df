package cluster

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"polder/api"
)

// dialTimeout is how long a connection to another host may take to come about.
const dialTimeout = 5 * time.Second

// aliveEvery is how often an idle connection to another host is tried, and aliveTries how often in vain before it counts as
// broken: a host that is gone is noticed after some 15 seconds.
const (
	aliveEvery = 5 * time.Second
	aliveTries = 2
)

// Dial connects to a host's peer port, by TLS that shows each end who the other one is. To this host itself it does so
// without the network. Errors: api.NotFound, api.Unavailable.
func (c *Cluster) Dial(ctx context.Context, name string) (net.Conn, error) {
	if name == c.Name() {
		return c.loop.dial(ctx)
	}
	host, err := c.lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	credentials := c.credentials.Load()
	if credentials == nil || host.Address == "" {
		return nil, api.Errorf(api.Unavailable, "connect to host %q: it has no address for other hosts", name)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: aliveEvery, Interval: aliveEvery, Count: aliveTries}},
		Config:    credentials.client(host),
	}
	conn, err := dialer.DialContext(ctx, "tcp", host.Address)
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "connect to host %q at %s: %w", name, host.Address, err)
	}
	return conn, nil
}

// lookup finds a host's record, the one last seen when the store does not answer.
func (c *Cluster) lookup(ctx context.Context, name string) (Host, error) {
	rec, err := c.hosts.Get(ctx, name)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.seen[name] = rec.Value
		return rec.Value, nil
	case api.KindOf(err) == api.NotFound:
		delete(c.seen, name)
		return Host{}, unknownHost(name)
	}
	if last, ok := c.seen[name]; ok {
		return last, nil
	}
	return Host{}, err
}
