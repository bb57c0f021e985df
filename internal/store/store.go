// Package store keeps typed, versioned records in etcd.
//
// It owns the embedded etcd member (or the connection to an external cluster), the layout of the keys, the envelope of a
// record with its version, compaction, and what to do when the database or the disk is full. It does not know what the
// records mean: each package above makes its own Tables.
//
// A Store and its Tables are safe for concurrent use. Every method that takes a context blocks for one round trip to
// etcd: a read takes some 0.1 ms, a write as long as the disk takes to sync. A write that returned nil is on disk. A write that
// returned api.Cancelled or api.Unavailable may or may not have happened.
package store

import (
	"context"
	"errors"
	"log/slog"
	"strings"
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
	// Endpoints of an external etcd cluster, as URLs. Empty: the embedded member. Polder leaves compaction and quota of
	// an external cluster to its owner.
	Endpoints []string
	// TLS is for https endpoints.
	TLS TLS
	// Quota in bytes of the embedded member's database; 0: DefaultQuota.
	Quota int64
	// Log receives what etcd logs at level error and above, and what the store does by itself; nil: slog.Default().
	Log *slog.Logger
}

// Store is an open store.
type Store struct {
	client *clientv3.Client
	member *member // nil with external endpoints
	log    *slog.Logger

	ctx    context.Context // done when the store is closed or has failed
	cancel context.CancelCauseFunc
}

// Open starts the embedded member, or connects to the external one, and checks that this version can read the store.
// Errors: api.Conflict when another process has the directory open, api.Unsupported when a newer version of Polder wrote
// the store, api.Exhausted when there is no room, api.Invalid when endpoints or TLS files are wrong, api.Unavailable when
// the external cluster does not answer.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Quota == 0 {
		o.Quota = DefaultQuota
	}
	s := &Store{log: o.Log}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	if err := s.open(ctx, o); err != nil {
		s.cancel(err)
		return nil, err
	}
	if _, err := request(ctx, s, "read store's format", s.checkFormat); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openTimeout is how long a member may take to start: it reads its log, and seldom defragments its database.
const openTimeout = 2 * time.Minute

func (s *Store) open(ctx context.Context, o Options) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errors.New("it does not become ready"))
	defer cancel()
	if len(o.Endpoints) == 0 {
		if o.TLS != (TLS{}) {
			return api.Errorf(api.Invalid, "etcd's TLS files %s: want the endpoints of an external etcd with them", strings.Join(o.TLS.names(), ", "))
		}
		s.member, err = startMember(ctx, o, s.fail)
		if err == nil {
			s.client = s.member.client
		}
		return err
	}
	s.client, err = connect(o)
	return err
}

// Close ends all watches and leases' renewal, and stops the embedded member. It blocks until the data are on disk.
func (s *Store) Close() error {
	failed := s.Err()
	s.cancel(errClosed)
	if s.member != nil {
		return s.member.stop(failed != nil)
	}
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
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
func (s *Store) Err() error {
	if err := context.Cause(s.ctx); err != nil && !errors.Is(err, errClosed) {
		return err
	}
	return nil
}

func (s *Store) fail(err error) {
	s.log.Error("the store's member stopped", "error", err)
	s.cancel(err)
}

// Revision is the store's present revision. A Watch from Revision+1 reports all that happens after.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	return request(ctx, s, "read store's revision", func(ctx context.Context) (int64, error) {
		found, err := s.client.Get(ctx, formatKey, clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return found.Header.Revision, nil
	})
}

// request makes one request with a time limit, and gives errors their kinds. what names it: `read ve "c1"`. f runs in a
// goroutine of its own because a member that failed may hold a request for ever, whatever its context says.
func request[R any](ctx context.Context, s *Store, what string, f func(context.Context) (R, error)) (R, error) {
	type answer struct {
		value R
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	answers := make(chan answer, 1)
	go func() {
		value, err := f(ctx)
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
