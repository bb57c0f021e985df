package store

import (
	"cmp"
	"context"
	"expvar"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

const (
	// keepRevisions is how much history the embedded member keeps for watchers that come back. It is a number and
	// not a time because a number needs no memory of when which revision was made, so restarts do not matter.
	keepRevisions = "5000"
	// snapshotCount and catchUpEntries bound how many raft entries are held in memory.
	snapshotCount  = 1000
	catchUpEntries = 2500
	// walSegment is the size of a preallocated file of the log; etcd keeps one ahead. Its own 64 MiB would cost every
	// host 128 MiB of disk for a log that sees a few KiB per operation.
	walSegment = 16 << 20
	// maxRequest is the largest record or transaction, in bytes.
	maxRequest = 4 << 20
	// mostOps is how many records a transaction may be about: an operation that makes hundreds of VEs locks them all at once. An
	// external etcd has a limit of its own, 128 unless --max-txn-ops says otherwise.
	mostOps = 2048
	// defragThreshold is how many MiB a defragmentation at start must free to be worth its time.
	defragThreshold = 32
)

// setWALSegment sets etcd's process-wide variable once, before any member runs.
var setWALSegment = sync.OnceFunc(func() { wal.SegmentSizeBytes = walSegment })

// member is an etcd member in this process. Its own host's client calls it directly; without a Peering it listens nowhere.
type member struct {
	dir     string
	etcd    *embed.Etcd
	client  *clientv3.Client
	lock    *os.File
	quota   quota
	space   *space
	clients *clients

	closing chan struct{}
	frozen  atomic.Bool   // a fatal error made one of etcd's goroutines stand still
	removed chan struct{} // closed when the others say that this is no member any more
}

func startMember(ctx context.Context, o Options, fail func(error)) (_ *member, err error) {
	if o.Peering != nil {
		if err := o.Peering.check(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, openError(o.Dir, err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	setWALSegment()
	m := &member{dir: o.Dir, lock: lock, space: newSpace(o.Dir), closing: make(chan struct{}), removed: make(chan struct{})}
	m.quota.member, m.quota.limit = m, api.Bytes(o.Quota)
	fatal := make(chan error, 1)
	config := m.config(o, func(err error) {
		m.frozen.Store(true)
		select {
		case fatal <- err: // still starting
		default:
		}
		fail(err)
	})
	m.clients = newClients(config.Name, m.admit)
	config.GRPCAdditionalServerOptions = m.clients.options()
	// Not in this goroutine: a fatal error makes the one that meets it stand still.
	started := make(chan error, 1)
	_, err = os.Stat(config.Dir)
	if err := m.space.admitStart(o.Dir, err != nil); err != nil {
		return nil, err
	}
	go func() {
		etcd, err := embed.StartEtcd(config)
		m.etcd = etcd
		started <- err
	}()
	select {
	case err = <-started:
	case err = <-fatal:
	}
	if err != nil {
		return nil, startError(o.Dir, err)
	}
	m.client = v3client.New(m.etcd.Server)
	if err := m.enter(ctx, o.Peering, fatal); err != nil {
		if m.frozen.Load() {
			go m.end()
		} else {
			m.end()
		}
		return nil, startError(o.Dir, err)
	}
	go m.watchOver(fail)
	if o.Peering != nil {
		go tendLinks(m.clients.ctx, o.Peering.port(), o.Log)
	}
	return m, nil
}

// enter returns once the member has its place in the cluster.
func (m *member) enter(ctx context.Context, p *Peering, fatal <-chan error) error {
	if err := m.checkPlace(p); err != nil {
		return err
	}
	if err := m.awaitReady(ctx, p, fatal); err != nil {
		return err
	}
	if p == nil {
		return nil
	}
	return m.announce(ctx, p)
}

// checkPlace compares what the data say with how the member was started.
func (m *member) checkPlace(p *Peering) error {
	server := m.etcd.Server
	voters := len(server.Cluster().Members())
	switch {
	case server.IsIDRemoved(uint64(server.MemberID())):
		return errRemoved
	case p == nil && voters > 1:
		return api.Errorf(api.Precondition, "it is one of the members %s: start it with the addresses of that cluster", strings.Join(m.names(), ", "))
	case p != nil && len(p.Join) > 1 && voters == 1 && !server.IsLearner():
		return api.Errorf(api.Precondition, "it is the store of a host alone, which can not join another cluster: remove that directory first")
	}
	return nil
}

var errRemoved = api.Errorf(api.Precondition, "this member was removed from the cluster: remove its directory, and use the store of the others")

// watchOver fails when etcd stops by itself.
func (m *member) watchOver(fail func(error)) {
	var err error
	select {
	case <-m.closing:
		return
	case <-m.removed:
		err = errRemoved
	case <-m.etcd.Server.StopNotify():
		err = api.Errorf(api.Internal, "etcd stopped by itself")
		if m.etcd.Server.IsIDRemoved(uint64(m.etcd.Server.MemberID())) {
			err = errRemoved
		}
	case cause := <-m.etcd.Err():
		err = api.Errorf(api.Internal, "etcd stopped: %w", cause)
	}
	select {
	case <-m.closing:
	default:
		fail(err)
	}
}

// names of all members that are known, sorted.
func (m *member) names() (names []string) {
	for _, peer := range m.etcd.Server.Cluster().Members() {
		names = append(names, cmp.Or(peer.Name, addressOf(peer.PeerURLs)))
	}
	slices.Sort(names)
	return names
}

func startError(dir string, err error) error {
	kind := api.KindOf(err)
	if isDiskFull(err.Error()) {
		return api.Errorf(api.Exhausted, "open store %q: %w: make room there and start again; nothing is lost", dir, err)
	}
	if strings.Contains(err.Error(), olderMessage) || strings.Contains(err.Error(), downgradeMessage) {
		return api.Errorf(api.Unsupported, "open store %q: the other members run a newer version of polder: upgrade this host, or let it be no member: %w", dir, err)
	}
	return api.Errorf(kind, "open store %q: %w", dir, err)
}

// What etcd says when it is too old for the other members, and for what its data were used with.
const (
	olderMessage     = "incompatible with current running cluster"
	downgradeMessage = "invalid downgrade"
)

func (m *member) config(o Options, fatal func(error)) *embed.Config {
	c := embed.NewConfig()
	c.Name = "polder"
	c.Dir = filepath.Join(o.Dir, "etcd")
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil, nil
	// A member must have a peer URL. Nobody listens there as long as it is the only one.
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.InitialClusterToken = newClusterToken()
	c.TickMs, c.ElectionMs = lonelyTickMS, lonelyElection
	c.MaxLearners = maxLearners
	if o.Peering != nil {
		o.Peering.configure(c)
	}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(o.Log, fatal, sync.OnceFunc(func() { close(m.removed) })))
	c.SnapshotCount = snapshotCount
	c.SnapshotCatchUpEntries = catchUpEntries
	c.MaxWalFiles = 2
	c.MaxSnapFiles = 2
	c.MaxRequestBytes = maxRequest
	c.QuotaBackendBytes = -1 // none: see quota
	c.MaxTxnOps = mostOps
	c.BackendFreelistType = "map"
	c.BootstrapDefragThresholdMegabytes = defragThreshold
	c.AutoCompactionMode = embed.CompactorModeRevision
	c.AutoCompactionRetention = keepRevisions
	c.EnableGRPCGateway = false
	return c
}

// awaitReady returns once there is a leader and the members know this one by its name and its clients' address.
func (m *member) awaitReady(ctx context.Context, p *Peering, fatal <-chan error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go campaign(ctx, m.etcd.Server) // not here: a raft that has failed answers nothing
	select {
	case <-m.etcd.Server.ReadyNotify():
		return nil
	case <-m.known(ctx, p):
		return nil
	case err := <-fatal:
		return err
	case <-m.removed:
		return errRemoved
	case err := <-m.etcd.Err():
		return fmt.Errorf("etcd stopped: %w", err)
	case <-ctx.Done():
		if len(m.names()) > 1 {
			return api.Errorf(api.Unavailable, "no majority of the members %s answers: %w", strings.Join(m.names(), ", "), context.Cause(ctx))
		}
		return context.Cause(ctx)
	}
}

// known is closed when there is a leader and the members need not be told anything of this one. etcd tells them at each start
// all the same, and is ready only after that: seven seconds later if the message, sent while the members still connect to each
// other, is lost.
func (m *member) known(ctx context.Context, p *Peering) <-chan struct{} {
	known := make(chan struct{})
	go func() {
		for p != nil && ctx.Err() == nil {
			server := m.etcd.Server
			self := server.Cluster().Member(server.MemberID())
			if server.Leader() != 0 && self != nil && self.Name == p.Name && slices.Equal(self.ClientURLs, []string{secureURL(p.Client)}) {
				close(known)
				return
			}
			pause(ctx, 5*time.Millisecond)
		}
	}()
	return known
}

// campaign makes the only member of a cluster leader at once. By itself it would wait for an election timeout (a second),
// which only makes sense where others may be leading. The message is the one by which a leader hands over. It must not come
// before raft has applied what was committed: raft would look through those entries, some of which etcd may have dropped
// from memory by then, and panic.
func campaign(ctx context.Context, server *etcdserver.EtcdServer) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for server.Leader() == 0 && len(server.Cluster().Members()) <= 1 {
		if applied(uint64(server.MemberID())) {
			id := uint64(server.MemberID())
			_ = server.Process(ctx, &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), To: &id, From: &id})
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// applied says whether raft has applied all that is committed. etcd shows its raft's status in no other way.
func applied(id uint64) bool {
	status, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return false
	}
	now, ok := status.Value().(raft.Status)
	return ok && now.ID == id && now.GetCommit() > 0 && now.Applied >= now.GetCommit()
}

// admit says whether there is room for a write; creates: it makes new records.
func (m *member) admit(ctx context.Context, what string, creates bool) error {
	if err := m.space.admit(ctx, what, creates); err != nil {
		return err
	}
	return m.quota.admit(ctx, what, creates)
}

// stop blocks until the data are on disk. A member that met a fatal error can not be stopped in order; its process has to end.
func (m *member) stop() error {
	select {
	case <-m.closing:
		return nil // somebody did already
	default:
		close(m.closing)
	}
	if m.frozen.Load() {
		return nil
	}
	m.end()
	return m.lock.Close()
}

func (m *member) end() {
	_ = m.client.Close() // its only error is that of the context it cancels
	m.clients.cutOff()
	select {
	case <-m.etcd.Server.ReadyNotify():
	default:
		m.etcd.Server.HardStop() // etcd's Close would wait until the member is ready, which may never be
	}
	m.etcd.Close()
}
