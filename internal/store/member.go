package store

import (
	"context"
	"expvar"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
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
	// defragThreshold is how many MiB a defragmentation at start must free to be worth its time.
	defragThreshold = 32
)

// setWALSegment sets etcd's process-wide variable once, before any member runs.
var setWALSegment = sync.OnceFunc(func() { wal.SegmentSizeBytes = walSegment })

// member is an etcd member in this process. It listens nowhere: the client calls it directly.
type member struct {
	dir    string
	etcd   *embed.Etcd
	client *clientv3.Client
	lock   *os.File
	quota  quota
	space  *space
}

func startMember(ctx context.Context, o Options, fail func(error)) (_ *member, err error) {
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
	fatal := make(chan error, 1)
	config := memberConfig(o, func(err error) {
		select {
		case fatal <- err: // still starting
		default:
		}
		fail(err)
	})
	// Not in this goroutine: a fatal error makes the one that meets it stand still.
	started := make(chan error, 1)
	m := &member{dir: o.Dir, lock: lock, space: newSpace(o.Dir)}
	m.quota.member, m.quota.limit = m, api.Bytes(o.Quota)
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
	if err := m.awaitReady(ctx, fatal); err != nil {
		go m.etcd.Close()
		return nil, startError(o.Dir, err)
	}
	m.client = v3client.New(m.etcd.Server)
	return m, nil
}

func startError(dir string, err error) error {
	kind := api.KindOf(err)
	if isDiskFull(err.Error()) {
		return api.Errorf(api.Exhausted, "open store %q: %w: make room there and start again; nothing is lost", dir, err)
	}
	return api.Errorf(kind, "open store %q: %w", dir, err)
}

func memberConfig(o Options, fatal func(error)) *embed.Config {
	c := embed.NewConfig()
	c.Name = "polder"
	c.Dir = filepath.Join(o.Dir, "etcd")
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil, nil
	// A member must have a peer URL. Nobody listens there as long as it is the only one.
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(o.Log, fatal))
	// A member alone has nobody to hear from: slow ticks spare an idle host's processor.
	c.TickMs, c.ElectionMs = 500, 5000
	c.SnapshotCount = snapshotCount
	c.SnapshotCatchUpEntries = catchUpEntries
	c.MaxWalFiles = 2
	c.MaxSnapFiles = 2
	c.MaxRequestBytes = maxRequest
	c.QuotaBackendBytes = hardQuota * o.Quota
	c.BackendFreelistType = "map"
	c.BootstrapDefragThresholdMegabytes = defragThreshold
	c.AutoCompactionMode = embed.CompactorModeRevision
	c.AutoCompactionRetention = keepRevisions
	c.EnableGRPCGateway = false
	return c
}

// awaitReady returns once the member leads and has published itself.
func (m *member) awaitReady(ctx context.Context, fatal <-chan error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go campaign(ctx, m.etcd.Server) // not here: a raft that has failed answers nothing
	select {
	case <-m.etcd.Server.ReadyNotify():
		return nil
	case err := <-fatal:
		return err
	case err := <-m.etcd.Err():
		return fmt.Errorf("etcd stopped: %w", err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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

// stop blocks until the data are on disk. A member that failed can not be stopped in order; its process has to end.
func (m *member) stop(failed bool) error {
	if failed {
		return nil
	}
	_ = m.client.Close() // its only error is that of the context it cancels
	m.etcd.Close()
	return m.lock.Close()
}
