package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/store"
)

// Options say who this host is to be.
type Options struct {
	Name    string // of the host
	Data    string // directory for what must outlive a reboot
	Version string // of Polder
	// Address is IP[:PORT] of the peer port; "": found out when it is needed.
	Address string
	Site    string
	Witness bool // votes, runs no VEs
	// Join is the token with which a host that is alone joins a cluster; without effect once it has.
	Join    string
	Etcd    []string // endpoints of an external etcd
	EtcdTLS store.TLS
	// Leave takes down what the host has set up by what its store says, such as its network: it is called before another store
	// takes that one's place, and can be called again.
	Leave func(context.Context) error
	Log   *slog.Logger

	// Life of this host's certificates, and of those that it signs; 0: 90 days.
	Life time.Duration
	// Patience is how long a member of the store may be gone before another host takes its place; 0: five minutes.
	Patience time.Duration
}

const defaultPatience = 5 * time.Minute

func (o Options) life() time.Duration {
	if o.Life == 0 {
		return defaultLife
	}
	return o.Life
}

func (o Options) patience() time.Duration {
	if o.Patience == 0 {
		return defaultPatience
	}
	return o.Patience
}

func (o Options) storeDir() string { return filepath.Join(o.Data, "store") }

// Identify finds out who this host is in its cluster. With Join it joins one first, which takes as long as the cluster needs to
// answer; it leaves nothing behind when it was not let in. Errors: api.Invalid, api.Precondition, api.Exists (the name), api.Unsupported,
// api.Unavailable when no host of the cluster answers.
func Identify(ctx context.Context, o Options) (*Identity, error) {
	k, ok, err := readIdentity(o.Data)
	switch {
	case err != nil:
		return nil, err
	case ok:
		return settled(o, k)
	case o.Join != "" && len(o.Etcd) > 0:
		return nil, api.Errorf(api.Invalid, "serve: --join and --etcd exclude each other: hosts with the same --etcd are one cluster, without a token")
	case o.Join != "":
		return join(ctx, o)
	case o.Witness && len(o.Etcd) == 0:
		return nil, api.Errorf(api.Invalid, "serve: --witness needs a cluster to vote in: give it --join TOKEN too")
	}
	return newIdentity(o, kept{Name: o.Name, Site: o.Site, External: len(o.Etcd) > 0}), nil
}

func newIdentity(o Options, k kept) *Identity {
	return &Identity{options: o, kept: k, beside: &beside{log: o.Log}}
}

// settled is the identity of a host that belongs to a cluster since an earlier start.
func settled(o Options, k kept) (*Identity, error) {
	switch {
	case o.Name != k.Name:
		return nil, api.Errorf(api.Precondition, "serve: this host is %q in its cluster, not %q: start it with --name %s", k.Name, o.Name, k.Name)
	case k.External != (len(o.Etcd) > 0):
		return nil, api.Errorf(api.Precondition, "serve: this host belongs to a cluster with another store: start it with the same --etcd as before, or first take it out of that cluster")
	}
	i := newIdentity(o, k)
	address, err := i.wantedAddress()
	if err != nil {
		return nil, err
	}
	if o.Site == "" {
		o.Site = k.Site
	}
	if address == k.Address && o.Site == k.Site && (!o.Witness || k.Witness) {
		return i, nil
	}
	return i, i.change(func(k *kept) { k.Address, k.Site, k.Witness = address, o.Site, k.Witness || o.Witness })
}

// wantedAddress is the address kept, unless the user says another one now.
func (i *Identity) wantedAddress() (string, error) {
	said, k := i.options.Address, i.kept
	at, err := netip.ParseAddrPort(k.Address)
	if said == "" || said == k.Address || err == nil && said == at.Addr().String() {
		return k.Address, nil
	}
	return chooseAddress(said, netip.Addr{})
}

// OpenStore opens the store as this host's part in it wants: alone, as one of its members, or as their client. A member that
// was taken out of the members while it was down goes on as a client.
func (i *Identity) OpenStore(ctx context.Context) (*store.Store, error) {
	k, o := i.now(), i.options
	switch {
	case len(o.Etcd) > 0:
		return store.Open(ctx, store.Options{Endpoints: o.Etcd, TLS: o.EtcdTLS, Log: o.Log})
	case k.Address == "":
		return store.Open(ctx, store.Options{Dir: o.storeDir(), Log: o.Log})
	case k.Member:
		st, err := store.Open(ctx, i.memberOptions(nil))
		if api.KindOf(err) != api.Precondition {
			return st, err
		}
		o.Log.Info("this host is no member of the store any more", "reason", err)
		if err := i.demote(); err != nil {
			return nil, err
		}
	}
	client := i.clientOptions()
	if _, err := os.Stat(filepath.Join(o.storeDir(), "etcd")); err == nil {
		// It was on its way to become a member, and may have been made one just before it went down: the others may need its vote.
		i.beside.start(i.memberOptions(nil))
		client.Endpoints = append(slices.Clone(client.Endpoints), "https://"+sibling(k.Address, clientOffset))
	}
	return store.Open(ctx, client)
}

// Waits says that the store may come back by itself: other hosts of this cluster keep it.
func (i *Identity) Waits() bool {
	k := i.now()
	return k.Address != "" && !k.External
}

// memberOptions are for this host as a member of the store; see store.Peering for join.
func (i *Identity) memberOptions(join map[string]string) store.Options {
	k := i.now()
	return store.Options{Dir: i.options.storeDir(), Log: i.options.Log, Peering: &store.Peering{
		Name: k.Name, Peer: sibling(k.Address, memberOffset), Client: sibling(k.Address, clientOffset), TLS: i.tls(), Join: join,
	}}
}

func (i *Identity) clientOptions() store.Options {
	return store.Options{Endpoints: i.now().Endpoints, TLS: i.tls(), Log: i.options.Log}
}

// demote makes this host a client from its next start on, and drops its copy of the store.
func (i *Identity) demote() error {
	err := i.change(func(k *kept) {
		own := "https://" + sibling(k.Address, clientOffset)
		k.Member = false
		if others := slices.DeleteFunc(slices.Clone(k.Endpoints), func(e string) bool { return e == own }); len(others) > 0 {
			k.Endpoints = others
		}
	})
	if err == nil {
		if err = os.RemoveAll(i.options.storeDir()); err != nil {
			err = api.Errorf(api.Internal, "drop this host's copy of the store: %w", err)
		}
	}
	return err
}

// set puts what was written by writeIdentityDir into effect.
func (i *Identity) set(k kept) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.kept = k
}

// forget ends this host's being in a cluster.
func (i *Identity) forget() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := errors.Join(os.RemoveAll(clusterDir(i.options.Data)), os.RemoveAll(i.options.storeDir())); err != nil {
		return api.Errorf(api.Internal, "forget the cluster that this host was removed from: %w", err)
	}
	return nil
}

// newID is the identity of a host that has none yet.
func newID() string { return uuid.NewString() }

// New makes this host's view of the cluster on the open store, and writes this host's record. Nothing runs before Up.
func New(ctx context.Context, i *Identity, st *store.Store, facts Facts) (*Cluster, error) {
	c := &Cluster{
		identity: i, facts: facts, store: st, client: !i.now().Member, log: i.options.Log, loop: newLoop(),
		hosts:      store.NewTable[Host](st, "host", 1),
		heartbeats: store.NewTable[heartbeat](st, "heartbeat", 1),
		absences:   store.NewTable[absence](st, "absence", 1),
		leaders:    store.NewTable[leadership](st, "leader", 1),
		tickets:    store.NewTable[ticket](st, "jointoken", 1),
		transports: map[string]*http.Transport{}, seen: map[string]Host{}, reopen: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := c.introduce(ctx); err != nil {
		c.cancel()
		return nil, err
	}
	return c, nil
}

// introduce makes sure that this host has an id, a certificate where it has an address, and a record that is right.
func (c *Cluster) introduce(ctx context.Context) error {
	if err := c.identify(ctx); err != nil {
		return err
	}
	if c.identity.now().External && c.identity.alone() {
		if err := c.openExternal(ctx); err != nil {
			return err
		}
	}
	if !c.identity.alone() {
		credentials, err := readCredentials(c.identity.tls())
		if err != nil {
			return err
		}
		c.credentials.Store(credentials)
		if err := c.renewWhenDue(ctx, time.Now()); err != nil {
			return err
		}
	}
	return c.register(ctx)
}

// identify gives a host alone the id that its record has, or a new one.
func (c *Cluster) identify(ctx context.Context) error {
	k := c.identity.now()
	if k.ID != "" {
		return nil
	}
	rec, err := c.hosts.Get(ctx, k.Name)
	switch {
	case err == nil && k.External:
		return api.Errorf(api.Exists, "serve: the cluster has a host %q already (at %s): give this one another name with --name, or, if that one is gone for good, first: polder host remove %s",
			k.Name, rec.Value.Address, k.Name)
	case err == nil:
		k.ID = rec.Value.ID
	case api.KindOf(err) == api.NotFound:
		k.ID = newID()
	default:
		return err
	}
	c.identity.set(k)
	return nil
}

// openExternal gives a host on an external etcd its address and its certificate. One that finds no address runs on alone.
func (c *Cluster) openExternal(ctx context.Context) error {
	ca, err := readAuthority(ctx, c.store)
	if err != nil {
		return err
	}
	c.entering = true
	err = c.open(ctx, ca, c.identity.options.Address)
	c.entering = false
	if api.KindOf(err) == api.Precondition && c.identity.options.Address == "" {
		c.log.Warn("other hosts can't reach this one", "error", err)
		return nil
	}
	return err
}

// register brings this host's record up to date.
func (c *Cluster) register(ctx context.Context) error {
	c.registering.Lock()
	defer c.registering.Unlock()
	k := c.identity.now()
	link, err := c.readLinks(k)
	if err != nil {
		return err
	}
	want := Host{
		Name: k.Name, ID: k.ID, Address: k.Address, Site: k.Site, Version: c.identity.options.Version,
		Kernel: c.facts.Kernel, Role: role(k.Witness, k.Member || k.Address == ""), CPUs: c.facts.CPUs, Memory: c.facts.Memory, BootedAt: c.facts.BootedAt,
		JoinedAt: time.Now().UTC(), Capabilities: c.abilities(), PoolDriver: c.facts.PoolDriver, TransferFormat: c.facts.TransferFormat,
		MTU: linkMTU(k.Address), LinkKey: link,
	}
	rec, err := c.hosts.Get(ctx, k.Name)
	if api.KindOf(err) == api.NotFound {
		if k.Address != "" && !c.entering {
			return c.removed(ctx)
		}
		_, err = c.hosts.Create(ctx, k.Name, want)
		return err
	}
	if err != nil {
		return err
	}
	if rec.Value.ID != k.ID {
		return c.removed(ctx)
	}
	want.JoinedAt = rec.Value.JoinedAt
	if want.Capabilities == nil {
		want.Capabilities = rec.Value.Capabilities
	}
	if reflect.DeepEqual(rec.Value, want) {
		return nil
	}
	rec.Value = want
	_, err = c.hosts.Update(ctx, rec)
	return err
}

// removed is what happens to a host that the cluster does not know any more: it forgets the cluster.
func (c *Cluster) removed(ctx context.Context) error {
	if err := c.identity.options.Leave(ctx); err != nil {
		return err
	}
	if err := c.identity.forget(); err != nil {
		return err
	}
	return api.Errorf(api.Precondition, "host %q was removed from its cluster: start it again to run it alone, or with a new --join TOKEN to join once more", c.Name())
}

// describe finds out what this host can do, and writes it into its record.
func (c *Cluster) describe() {
	able := c.facts.Capabilities(c.ctx)
	c.mu.Lock()
	c.able = able
	c.mu.Unlock()
	if err := c.register(c.ctx); err != nil && c.ctx.Err() == nil {
		c.log.Warn("this host's record is not up to date", "error", err)
	}
}

func (c *Cluster) abilities() []api.Capability {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.able
}
