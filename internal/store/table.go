package store

import (
	"context"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// Table is all records of one type. Keys are free text (not empty); they may contain slashes.
type Table[T any] struct {
	store    *Store
	noun     string
	prefix   string
	version  int
	head     string // of the envelopes it writes
	upgrades []Upgrade
}

// NewTable names a table; it reads and writes nothing. noun is both what a record is called in errors and its place in the
// store, version what this version of Polder writes. upgrades[i] turns version i+1 into i+2, so there are version-1.
func NewTable[T any](s *Store, noun string, version int, upgrades ...Upgrade) *Table[T] {
	if version < 1 || len(upgrades) != version-1 || noun == "" || strings.Contains(noun, "/") {
		panic(fmt.Sprintf("store: table %q: version %d with %d upgrades", noun, version, len(upgrades)))
	}
	return &Table[T]{store: s, noun: noun, prefix: root + noun + "/", version: version, head: head(version), upgrades: upgrades}
}

func (t *Table[T]) name(key string) string { return fmt.Sprintf("%s %q", t.noun, key) }

func (t *Table[T]) record(kv *mvccpb.KeyValue) (Record[T], error) {
	key := strings.TrimPrefix(string(kv.Key), t.prefix)
	value, err := t.decode(key, kv.Value)
	return Record[T]{Key: key, Value: value, Revision: kv.ModRevision}, err
}

// Get reads one record; api.NotFound when it is not there.
func (t *Table[T]) Get(ctx context.Context, key string) (Record[T], error) {
	return request(ctx, t.store, "read "+t.name(key), func(ctx context.Context) (Record[T], error) {
		found, err := t.store.client().Get(ctx, t.prefix+key)
		if err != nil {
			return Record[T]{}, err
		}
		if len(found.Kvs) == 0 {
			return Record[T]{}, api.Errorf(api.NotFound, "%s not found", t.name(key))
		}
		return t.record(found.Kvs[0])
	})
}

// List reads all records, sorted by key.
func (t *Table[T]) List(ctx context.Context) ([]Record[T], error) {
	recs, _, err := t.Snapshot(ctx, "")
	return recs, err
}

// Snapshot reads all records whose key begins with keyPrefix, sorted by key, and the store's revision at which they were
// so: a Watch from revision+1 goes on right there.
func (t *Table[T]) Snapshot(ctx context.Context, keyPrefix string) (recs []Record[T], revision int64, err error) {
	found, err := t.read(ctx, keyPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, err
	}
	recs = make([]Record[T], 0, len(found.Kvs))
	for _, kv := range found.Kvs {
		rec, err := t.record(kv)
		if err != nil {
			return nil, 0, err
		}
		recs = append(recs, rec)
	}
	return recs, found.Header.Revision, nil
}

func (t *Table[T]) read(ctx context.Context, key string, options ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return request(ctx, t.store, "list "+t.noun+" records", func(ctx context.Context) (*clientv3.GetResponse, error) {
		return t.store.client().Get(ctx, t.prefix+key, options...)
	})
}

// Create writes a record that must not be there yet: api.Exists.
func (t *Table[T]) Create(ctx context.Context, key string, value T, options ...WriteOption) (Record[T], error) {
	return t.write(ctx, key, value, t.OpCreate(key, value, options...))
}

// Put writes a record whether it is there or not.
func (t *Table[T]) Put(ctx context.Context, key string, value T, options ...WriteOption) (Record[T], error) {
	return t.write(ctx, key, value, t.OpPut(key, value, options...))
}

// Update writes rec.Value if the record is still as it was when rec was read: api.Conflict otherwise, api.NotFound when
// it was deleted.
func (t *Table[T]) Update(ctx context.Context, rec Record[T], options ...WriteOption) (Record[T], error) {
	return t.write(ctx, rec.Key, rec.Value, t.OpUpdate(rec, options...))
}

func (t *Table[T]) write(ctx context.Context, key string, value T, op Op) (Record[T], error) {
	revision, err := t.store.Txn(ctx, op)
	return Record[T]{Key: key, Value: value, Revision: revision}, err
}

// Modify reads a record, lets change alter it and writes it back, again and again until nobody else wrote it in between.
// change may run several times. An error of change ends it and is returned; api.NotFound when the record is not there.
func (t *Table[T]) Modify(ctx context.Context, key string, change func(*T) error) (Record[T], error) {
	for {
		rec, err := t.Get(ctx, key)
		if err != nil {
			return rec, err
		}
		if err := change(&rec.Value); err != nil {
			return rec, err
		}
		rec, err = t.Update(ctx, rec)
		if api.KindOf(err) != api.Conflict {
			return rec, err
		}
	}
}

// Delete deletes a record; api.NotFound when it is not there.
func (t *Table[T]) Delete(ctx context.Context, key string) error {
	_, err := t.store.Txn(ctx, t.OpDeleteKey(key))
	return err
}

// DeleteIf deletes the record if it is still as it was when rec was read: api.Conflict otherwise.
func (t *Table[T]) DeleteIf(ctx context.Context, rec Record[T]) error {
	_, err := t.store.Txn(ctx, t.OpDelete(rec))
	return err
}
