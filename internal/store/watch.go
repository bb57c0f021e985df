package store

import (
	"context"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// Change is one thing that happened to a table.
type Change[T any] struct {
	Key string
	// Value is nil when the record was deleted (or its lease ended).
	Value *T
	// Prev is what the record was before; nil when it is new or that is not known any more.
	Prev *T
	// Revision of the store at which it happened. Changes of one transaction share it.
	Revision int64
	// Reset means that history was lost (compacted while nobody listened): forget every record known so far. It comes
	// alone, without a key; all records that exist follow as new ones.
	Reset bool
	// Err says that the record Key can not be read, for example because a newer version wrote it. Value is nil then.
	Err error
}

// Watch reports all changes from the revision `from` on (0: from now), in order. The channel is closed when ctx is done
// or the store is closed. A slow reader loses nothing, but what waits for it is held in memory.
func (t *Table[T]) Watch(ctx context.Context, from int64) <-chan Change[T] {
	return t.watch(ctx, from, "", clientv3.WithPrefix())
}

// WatchKey is Watch for one record.
func (t *Table[T]) WatchKey(ctx context.Context, key string, from int64) <-chan Change[T] {
	return t.watch(ctx, from, key)
}

func (t *Table[T]) watch(ctx context.Context, from int64, key string, options ...clientv3.OpOption) <-chan Change[T] {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(t.store.ctx, cancel)
	w := &watcher[T]{table: t, key: key, options: options, out: make(chan Change[T])}
	w.feed = t.store.feed(ctx, t.prefix+key, from, options...)
	go func() {
		defer close(w.out)
		defer cancel()
		defer stop()
		for ctx.Err() == nil {
			compacted := w.feed.follow(ctx, func(event *clientv3.Event) bool { return w.send(ctx, t.change(event)) })
			if compacted > 0 {
				w.restart(ctx)
			}
		}
	}()
	return w.out
}

type watcher[T any] struct {
	table   *Table[T]
	key     string
	options []clientv3.OpOption
	out     chan Change[T]
	feed    *feed
}

func (t *Table[T]) change(event *clientv3.Event) Change[T] {
	c := Change[T]{Key: strings.TrimPrefix(string(event.Kv.Key), t.prefix), Revision: event.Kv.ModRevision}
	if event.Type == clientv3.EventTypePut {
		if value, err := t.decode(c.Key, event.Kv.Value); err != nil {
			c.Err = err
		} else {
			c.Value = &value
		}
	}
	if event.PrevKv != nil {
		if value, err := t.decode(c.Key, event.PrevKv.Value); err == nil {
			c.Prev = &value
		}
	}
	return c
}

// restart reports all records anew after history was lost.
func (w *watcher[T]) restart(ctx context.Context) {
	s := w.table.store
	found, err := w.table.read(ctx, w.key, w.options...)
	if err != nil {
		if api.KindOf(err) != api.Cancelled {
			s.log.Warn("watch can not list the records again", "table", w.table.noun, "error", err)
		}
		pause(ctx, time.Second) // the watch fails the same way and brings us back
		return
	}
	if !w.send(ctx, Change[T]{Reset: true, Revision: found.Header.Revision}) {
		return
	}
	for _, kv := range found.Kvs {
		if !w.send(ctx, w.table.change(&clientv3.Event{Type: clientv3.EventTypePut, Kv: kv})) {
			return
		}
	}
	w.feed.next = found.Header.Revision + 1
}

func (w *watcher[T]) send(ctx context.Context, c Change[T]) bool {
	select {
	case w.out <- c:
		return true
	case <-ctx.Done():
		return false
	}
}
