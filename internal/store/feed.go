package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// feed is a watch of etcd that goes on by itself, by another member if need be, and without losing or repeating a change,
// from the revision after the last one that was passed on. It belongs to one goroutine.
type feed struct {
	store   *Store
	key     string
	options []clientv3.OpOption
	next    int64 // revision to go on from; 0: now
	changes clientv3.WatchChan
	opened  time.Time
	end     context.CancelFunc // of the watch that is open
}

// feedPause is the shortest time between two tries to watch.
const feedPause = 250 * time.Millisecond

// feed starts one from the revision `from` on. With 0 it blocks until it is known which revision that is, for the time of a
// request at most.
func (s *Store) feed(ctx context.Context, key string, from int64, options ...clientv3.OpOption) *feed {
	f := &feed{store: s, key: key, options: options, next: from, end: func() {}}
	limit, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for f.next == 0 && limit.Err() == nil {
		f.begin(ctx, limit)
	}
	return f
}

// begin opens a watch from now on, and waits until it is open. etcd tells it of changes at once; one that begins in the past, if
// only by one revision, has to wait for etcd's next round for such watches, up to 100 ms.
func (f *feed) begin(ctx, limit context.Context) {
	f.open(ctx)
	giveUp := context.AfterFunc(limit, f.end) // where nobody answers etcd's client would wait for ever
	created, ok := <-f.changes
	if ok && created.Created && giveUp() {
		f.next = created.Header.Revision + 1
		return
	}
	f.close()
	pause(limit, feedPause)
}

func (f *feed) close() {
	f.end()
	f.changes = nil
}

func (f *feed) open(ctx context.Context) {
	way := f.store.way.Load()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(way.ctx, cancel)
	f.end = func() { stop(); cancel() }
	if f.store.several() {
		ctx = clientv3.WithRequireLeader(ctx) // else a member that is cut off from the others would keep us waiting
	}
	options := append([]clientv3.OpOption{
		clientv3.WithPrevKV(), clientv3.WithRev(f.next), clientv3.WithCreatedNotify(), clientv3.WithProgressNotify(),
	}, f.options...)
	f.opened = time.Now()
	f.changes = way.client.Watch(ctx, f.key, options...)
}

// follow passes changes on until the watch ends by itself, send returns false, or ctx is done. When the changes that come next
// have been compacted it returns the revision from which on there are some.
func (f *feed) follow(ctx context.Context, send func(*clientv3.Event) bool) (compacted int64) {
	if f.changes == nil {
		pause(ctx, feedPause-time.Since(f.opened))
		f.open(ctx)
	}
	defer f.close()
	for response := range f.changes {
		if errors.Is(response.Err(), rpctypes.ErrCompacted) {
			return response.CompactRevision
		}
		if response.Err() != nil {
			return 0
		}
		for _, event := range response.Events {
			if !send(event) {
				return 0
			}
		}
		f.passed(response)
	}
	return 0
}

// passed notes how far we are. A response's own revision does not say that when it has events: what happened up to then may
// come in several responses.
func (f *feed) passed(response clientv3.WatchResponse) {
	now := response.Header.Revision
	if n := len(response.Events); n > 0 {
		now = response.Events[n-1].Kv.ModRevision
	} else if !response.IsProgressNotify() && f.next != 0 {
		return
	}
	f.next = max(f.next, now+1)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
