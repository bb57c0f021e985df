package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// quota keeps the embedded member's database below a limit. etcd has a quota of its own, but answers it with an alarm that
// ends all writes, those that free space too, and with errors for writes that did happen; it is off. The size is that of the
// last commit of the database, so that what was written in the 100 ms before may come on top of the limit.
type quota struct {
	member *member
	limit  api.Bytes

	mu     sync.Mutex // held while room is being made
	failed time.Time  // when that last made no room
}

// quotaPause is how long nothing is tried after a compaction that made no room: first something has to be deleted.
const quotaPause = 2 * time.Second

func (q *quota) size() api.Bytes { return api.Bytes(q.member.etcd.Server.Backend().Size()) }

// admit says whether there is room for a write; creates: it makes new records. When the limit is reached it drops all
// history first, which blocks for some milliseconds per 10 MiB, and all other requests with it. Errors are api.Exhausted.
func (q *quota) admit(ctx context.Context, what string, creates bool) error {
	if q.size() < q.limit {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size() >= q.limit && time.Since(q.failed) >= quotaPause {
		if err := q.compact(ctx); err != nil {
			return api.Errorf(api.Internal, "%s: compact the store: %w", what, err)
		}
		q.failed = time.Time{}
		if q.size() >= q.limit*9/10 {
			q.failed = time.Now()
		}
	}
	if q.failed.IsZero() || isFreeing(ctx) || !creates {
		return nil
	}
	return api.Errorf(api.Exhausted, "%s: store %s is full (%v of its quota of %v): delete VEs or images that are no longer needed, or start the daemon with a larger quota for the store",
		what, q.member.dir, q.size(), q.limit)
}

func (q *quota) compact(ctx context.Context) error {
	now, err := q.member.client.Get(ctx, formatKey, clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	_, err = q.member.client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return err
	}
	return q.member.etcd.Server.Backend().Defrag()
}
