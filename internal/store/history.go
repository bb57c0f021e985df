package store

import (
	"context"
	"strings"

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
	from := int64(0)
	if after > 0 {
		from = after + 1
	}
	out := make(chan Entry)
	send := func(e Entry) bool {
		select {
		case out <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	changes := s.feed(ctx, root, from, clientv3.WithPrefix())
	go func() {
		defer close(out)
		defer cancel()
		defer stop()
		for ctx.Err() == nil {
			compacted := changes.follow(ctx, func(event *clientv3.Event) bool {
				return send(Entry{Revision: event.Kv.ModRevision, event: event})
			})
			if compacted > 0 {
				changes.next = compacted
				send(Entry{Revision: compacted, Lost: true})
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
