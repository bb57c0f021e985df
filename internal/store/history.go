package store

import (
	"context"
	"errors"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Entry is one change of one record of any table. Table.Change reads it.
type Entry struct {
	// Revision of the store at which it happened. Changes of one transaction share it.
	Revision int64
	// Lost means that changes before Revision have been compacted and can't be told any more. It comes alone.
	Lost bool

	event *clientv3.Event
}

// History reports the changes of all tables after the revision `after` (0: from now on), in order: one stream, so that a
// reader who was cut off misses nothing when it goes on from the last revision that it saw whole. The channel is closed
// when ctx is done or the store is closed.
func (s *Store) History(ctx context.Context, after int64) <-chan Entry {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	next := int64(0)
	if after > 0 {
		next = after + 1
	}
	open := func() clientv3.WatchChan {
		return s.client.Watch(ctx, root, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(next))
	}
	out := make(chan Entry)
	send := func(e Entry) {
		select {
		case out <- e:
		case <-ctx.Done():
		}
	}
	changes := open() // before the return, so that with 0 all that the caller does after is seen
	go func() {
		defer close(out)
		defer cancel()
		defer stop()
		for ; ctx.Err() == nil; changes = open() {
			for response := range changes {
				if errors.Is(response.Err(), rpctypes.ErrCompacted) {
					next = response.CompactRevision
					send(Entry{Revision: next, Lost: true})
					break
				}
				for _, event := range response.Events {
					send(Entry{Revision: event.Kv.ModRevision, event: event})
				}
				if response.Err() == nil && response.Header.Revision >= next {
					next = response.Header.Revision + 1
				}
			}
		}
	}()
	return out
}

// Change reads an entry of this table; ok is false when it is another's.
func (t *Table[T]) Change(e Entry) (c Change[T], ok bool) {
	if e.event == nil || !strings.HasPrefix(string(e.event.Kv.Key), t.prefix) {
		return c, false
	}
	return t.change(e.event), true
}
