// Package store keeps typed, versioned records in etcd.
//
// It owns the embedded etcd member (or the connection to those of other hosts, or to an external cluster), who is a member,
// the layout of the keys, the envelope of a record with its version, compaction, and what to do when the database or the disk
// is full. It does not know what the records mean, nor which hosts should be members: each package above makes its own Tables.
//
// A Store and its Tables are safe for concurrent use. Every method that takes a context blocks for one round trip to
// etcd: a read takes some 0.1 ms, a write as long as the disk takes to sync. A write that returned nil is on disk. A write that
// returned api.Cancelled or api.Unavailable may or may not have happened.
//
// # Clusters
//
// A host has the store in one of three ways: alone (a member that listens nowhere), as one of several members (Peering), or as
// a client of other hosts' members (Endpoints). The store of a member asks the member in its own process, which is fast, and
// other members while that one knows no leader (see steer); that of a client asks any member that answers and knows a leader. Either makes
// requests again while a leader is being chosen, transactions too (see commit), and gives up after ten seconds with
// api.Unavailable; when a majority is there again it goes on by itself. Watches, histories and leases go on as well.
//
// Nothing here compares the clocks of two hosts: leases run by the leader's monotonic clock, and begin anew with a new leader.
//
// # Versions
//
// A host that is one release older than the others can use the store, and be in it while they are upgraded one by one:
//   - A record has the version of its type. Fields that older releases need not know are added without a new version: an older
//     host that changes such a record drops them. A release that gives a type a new version reads both and writes the old one; the release after it writes the new one.
//   - The layout of the keys has one version, the format, which is treated likewise. Open refuses a newer one, and an open
//     store fails when a newer host writes one, both with api.Unsupported.
//   - etcd's members agree on the least of their minor versions, and raise it when the last one was upgraded. From then on
//     an older etcd is refused as a member (api.Unsupported) and is still good for a client. They may differ by one minor
//     version, so a release takes over one of etcd's at most.
package store

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// root is the first part of every key, so that Polder can share an etcd cluster with others.
const root = "polder/"

// requestTimeout is how long one request to etcd may take when the caller sets no shorter limit.
const requestTimeout = 10 * time.Second

// DefaultQuota is how large the embedded member's database may grow. A VE's record is about 2 KiB.
const DefaultQuota = 1 << 30

// Options says where the store is.
type Options struct {
	// Dir holds the embedded member's data; it is made when missing. Not used with Endpoints.
	Dir string
	// Endpoints of an external etcd cluster, or of the members that other hosts run, as URLs or IP:PORT. Empty: the embedded
	// member. Polder leaves compaction and quota of an external cluster to its owner.
	Endpoints []string
	// Peering makes the embedded member one of several hosts'; nil: it is alone, and listens nowhere.
	Peering *Peering
	// TLS is for https endpoints.
	TLS TLS
	// Quota in bytes of the embedded member's database; 0: DefaultQuota.
	Quota int64
	// Log receives what etcd logs at level error and above, and what the store does by itself; nil: slog.Default().
	Log *slog.Logger
}

// Store is an open store.
type Store struct {
	way    atomic.Pointer[way]
	member *member // nil with endpoints
	peers  bool    // the member has a Peering
	secure bool    // with endpoints: by https
	log    *slog.Logger
	steers sync.WaitGroup

	markers *markers
	askers  *askers

	ctx    context.Context // done when the store is closed or has failed
	cancel context.CancelCauseFunc
}

// Open starts the embedded member, or connects to the external one, and checks that this version can read the store.
// Errors: api.Conflict when another process has the directory open, api.Unsupported when a newer version of Polder wrote
// the store or runs its other members, api.Exhausted when there is no room, api.Invalid when endpoints, addresses or TLS files
// are wrong, api.Precondition when the member in the directory was removed from its cluster, or is of another one,
// api.Unavailable when the other side does not answer: no majority of the members within ctx, or two minutes; no endpoint
// within ten seconds.
func Open(ctx context.Context, o Options) (*Store, error) {
	o = o.complete()
	s := &Store{log: o.Log, markers: newMarkers(), peers: o.Peering != nil, askers: newAskers(o)}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	if err := s.open(ctx, o); err != nil {
		s.cancel(err)
		return nil, err
	}
	revision, err := request(ctx, s, "read store's format", s.checkFormat)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.several() {
		go s.guardFormat(revision)
	}
	return s, nil
}

func (o Options) complete() Options {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Quota == 0 {
		o.Quota = DefaultQuota
	}
	return o
}

// openTimeout is how long a member may take to start: it reads its log, and seldom defragments its database.
const openTimeout = 2 * time.Minute

func withOpenTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, openTimeout, errors.New("it does not become ready"))
}

func (s *Store) open(ctx context.Context, o Options) (err error) {
	ctx, cancel := withOpenTimeout(ctx)
	defer cancel()
	if len(o.Endpoints) > 0 {
		if o.Peering != nil {
			return api.Errorf(api.Invalid, "open store: want endpoints or a member's addresses, not both")
		}
		client, secure, err := connect(o)
		s.secure = secure
		s.way.Store(newWay(client, false))
		return err
	}
	if o.TLS != (TLS{}) {
		return api.Errorf(api.Invalid, "etcd's TLS files %s: want the endpoints of an external etcd with them", strings.Join(o.TLS.names(), ", "))
	}
	if s.member, err = startMember(ctx, o, s.fail); err != nil {
		return err
	}
	s.way.Store(newWay(s.member.client, true))
	if s.peers {
		s.steers.Go(func() { s.steer(o.Peering.TLS) })
	}
	return nil
}

// Close ends all watches and leases' renewal, and stops the embedded member. It blocks until the data are on disk.
func (s *Store) Close() error {
	s.cancel(errClosed)
	s.steers.Wait()
	s.askers.close()
	if s.member != nil {
		return s.member.stop()
	}
	if err := s.client().Close(); err != nil && !errors.Is(err, context.Canceled) {
		return api.Errorf(api.Internal, "close store: %w", err)
	}
	return nil
}

var errClosed = errors.New("store is closed")

// Failed is closed when the embedded member can not go on (a disk that went bad or full under its hands) and when the
// store was closed; Err says which. A failed store answers nothing any more: its process has to be started anew. Nothing
// that was written is lost by that.
func (s *Store) Failed() <-chan struct{} { return s.ctx.Done() }

// Err says why the store failed; nil as long as it works, and when it was merely closed.
func (s *Store) Err() error { return failure(s.ctx) }

func (s *Store) fail(err error) { fail(s.log, s.cancel, err) }

// Revision is the store's present revision. A Watch from Revision+1 reports all that happens after.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	return request(ctx, s, "read store's revision", func(ctx context.Context) (int64, error) {
		found, err := s.client().Get(ctx, formatKey, clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return found.Header.Revision, nil
	})
}

// request makes one request with a time limit, and gives errors their kinds. what names it: `read ve "c1"`. f may run several
// times, one after the other; it does so in a goroutine of its own because a member that failed may hold a request for ever,
// whatever its context says.
func request[R any](ctx context.Context, s *Store, what string, f func(context.Context) (R, error)) (R, error) {
	type answer struct {
		value R
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, patienceOf(ctx))
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	answers := make(chan answer, 1)
	go func() {
		value, err := repeat(ctx, s, f)
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, s.explain(what, a.err)
	case <-s.ctx.Done():
		var none R
		return none, s.explain(what, s.ctx.Err())
	}
}
