// Package cluster makes hosts one cluster: who belongs to it, who is alive, and how one reaches another.
//
// It owns the records "host", "heartbeat", "absence", "leader", "clusterca" and "jointoken"; the cluster's CA and the hosts'
// certificates; the peer port, on which hosts talk with each other by mutual TLS; joining and removing hosts; and which
// hosts are members of the store. It does not know what hosts run: who calls hands over what is to be served.
//
// What a host must know before it can open the store (its name in the cluster, its certificate, where the members are)
// is in the directory DATA/cluster; see Identity. A host alone has no such directory, listens nowhere, and is a cluster of one.
//
//	alone  --first join token, --etcd-->  in a cluster  <--joined with a token--  alone, without VEs
//
// A Cluster is safe for concurrent use. Methods that take a context block for some round trips to the store or to the other
// host.
package cluster

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"polder/api"
	"polder/client"
	"polder/internal/store"
)

// Facts are what a host says about itself when it comes up.
type Facts struct {
	Kernel         string
	CPUs           int
	Memory         api.Bytes
	BootedAt       time.Time
	PoolDriver     string
	TransferFormat string
	// Capabilities are tried on the real thing, which takes a while: it is called once, in the background.
	Capabilities func(context.Context) []api.Capability
	// Figures measures what changes all the time.
	Figures func(context.Context) (Figures, error)
}

// Cluster is this host's view of the cluster.
type Cluster struct {
	identity *Identity
	facts    Facts
	store    *store.Store
	log      *slog.Logger

	hosts      *store.Table[Host]
	heartbeats *store.Table[heartbeat]
	absences   *store.Table[absence]
	leaders    *store.Table[leadership]
	tickets    *store.Table[ticket]

	client      bool                        // of the store's members: the store was not opened as one
	credentials atomic.Pointer[credentials] // nil: it has no address
	loop        *loop
	entering    bool       // a store of somebody else's: this host has no record there yet; only before Up
	opening     sync.Mutex // held while a host alone is opened for others
	registering sync.Mutex // held while this host's record is brought up to date
	reopenOnce  sync.Once
	reopen      chan struct{}

	wanted      action // what control would do once there is no doubt
	wantedSince time.Time

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu         sync.Mutex // guards what follows
	transports map[string]*http.Transport
	seen       map[string]Host  // records as they were read last
	able       []api.Capability // of this host; nil: not tried yet
	links      linkKey          // of this host; empty: it is alone
	lease      *store.Lease     // of this host's heartbeat; nil: none yet
	leading    *store.Lease     // under which it wrote that it leads
}

// Up starts what runs in the background: this host's heartbeat, the renewal of its certificate, its part in the store, and,
// where this host leads, the care for all of that. A host alone has none of it.
func (c *Cluster) Up() {
	c.wg.Go(c.describe)
	if c.identity.alone() {
		return
	}
	c.wg.Go(c.beat)
	c.wg.Go(c.renew)
	c.wg.Go(c.control)
	c.wg.Go(c.follow)
}

// Close ends all that Up started, and connections to other hosts that are idle. VEs, and other hosts, are not concerned.
func (c *Cluster) Close() {
	c.cancel()
	c.loop.Close()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// Reopen is closed when the store must be opened anew, because this host's part in it has changed, or its place: the daemon
// then closes everything and begins again with Identify.
func (c *Cluster) Reopen() <-chan struct{} { return c.reopen }

func (c *Cluster) wantReopen() { c.reopenOnce.Do(func() { close(c.reopen) }) }

// Witness says that this host votes only, and is to run no VEs.
func (c *Cluster) Witness() bool { return c.identity.now().Witness }

// Name of this host.
func (c *Cluster) Name() string { return c.identity.Name() }

// Hosts lists the hosts with what is known of them now, by name.
func (c *Cluster) Hosts(ctx context.Context) ([]Status, error) {
	recs, err := c.hosts.List(ctx)
	if err != nil {
		return nil, err
	}
	beats, err := c.heartbeats.List(ctx)
	if err != nil {
		return nil, err
	}
	absences, err := c.absences.List(ctx)
	if err != nil {
		return nil, err
	}
	beating := make(map[string]heartbeat, len(beats))
	for _, beat := range beats {
		beating[beat.Key] = beat.Value
	}
	since := make(map[string]time.Time, len(absences))
	for _, a := range absences {
		since[a.Key] = a.Value.Since
	}
	list := make([]Status, len(recs))
	for i, rec := range recs {
		s := Status{Host: rec.Value}
		beat, ok := beating[rec.Key]
		s.Alive, s.Figures = ok && beat.ID == rec.Value.ID, beat.Figures
		if !s.Alive {
			s.Since = since[rec.Key]
		}
		if rec.Key == c.Name() {
			c.seeMyself(ctx, &s)
		}
		list[i] = s
	}
	slices.SortFunc(list, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// seeMyself fills in what this host knows better than its record: it answers.
func (c *Cluster) seeMyself(ctx context.Context, s *Status) {
	s.Alive, s.Since = true, time.Time{}
	if figures, err := c.facts.Figures(ctx); err == nil {
		s.Figures = figures
	}
}

// Host finds one host; api.NotFound.
func (c *Cluster) Host(ctx context.Context, name string) (Status, error) {
	list, err := c.Hosts(ctx)
	if err != nil {
		return Status{}, err
	}
	i := slices.IndexFunc(list, func(s Status) bool { return s.Name == name })
	if i < 0 {
		return Status{}, unknownHost(name)
	}
	return list[i], nil
}

func unknownHost(name string) error {
	return api.Errorf(api.NotFound, "host %q not found; see: polder host list", name)
}

// Reachable finds a host that is alive: api.NotFound, or api.Unavailable when it is not.
func (c *Cluster) Reachable(ctx context.Context, name string) (Status, error) {
	s, err := c.Host(ctx, name)
	if err != nil || s.Alive {
		return s, err
	}
	since := ""
	if !s.Since.IsZero() {
		since = " since " + s.Since.UTC().Format(time.RFC3339)
	}
	return s, api.Errorf(api.Unavailable, "host %q is down or cut off%s: start it, or look at its link and its log; if it is lost for good: polder host remove %s --force", name, since, name)
}

// Watch sends when hosts came, went, changed their record, or became alive or unreachable: read what you need anew. Several
// changes may be one message. The channel is closed when ctx or the Cluster ends.
func (c *Cluster) Watch(ctx context.Context) <-chan struct{} {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, cancel)
	out := make(chan struct{}, 1)
	hosts, beats := c.hosts.Watch(ctx, 0), c.heartbeats.Watch(ctx, 0)
	go func() {
		defer close(out)
		defer cancel()
		defer stop()
		for ctx.Err() == nil {
			select {
			case _, ok := <-hosts:
				if !ok {
					return
				}
			case beat, ok := <-beats:
				if !ok {
					return
				}
				if beat.Value != nil && beat.Prev != nil && beat.Value.ID == beat.Prev.ID {
					continue // only its figures
				}
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out
}

// Client is a client of another host's API, over its peer port. It is made once a host and must not be closed.
func (c *Cluster) Client(name string) (*client.Client, error) {
	if err := api.CheckName("host", name); err != nil {
		return nil, err
	}
	return client.Over("host "+name, c.transport(name)), nil
}

// Transport makes requests to another host's peer port, whatever host their URL (http://…) names: for a reverse proxy.
func (c *Cluster) Transport(name string) http.RoundTripper { return c.transport(name) }

// transport is kept, so that connections are used again.
func (c *Cluster) transport(name string) *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.transports[name]; ok {
		return t
	}
	t := &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx, name) },
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
		ExpectContinueTimeout: 2 * time.Second,
	}
	c.transports[name] = t
	return t
}
