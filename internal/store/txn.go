package store

import (
	"context"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// Op is one part of a transaction, made by a Table.
type Op struct {
	name   string // `ve "c1"`
	key    string
	prefix bool          // key is the first part of many
	expect expectation   // what must hold for the transaction to happen
	exact  int64         // for expectExact: the revision
	apply  []clientv3.Op // at most one
	frees  bool          // it deletes
	err    error         // the value could not be encoded
}

type expectation int

const (
	expectNothing expectation = iota
	expectAbsent
	expectPresent
	expectExact
)

// WriteOption changes how a record is written.
type WriteOption func(*writeOptions)

type writeOptions struct {
	lease clientv3.LeaseID
}

// WithLease makes the record vanish when the lease ends.
func WithLease(l *Lease) WriteOption {
	return func(o *writeOptions) { o.lease = l.id }
}

func (t *Table[T]) put(key string, value T, options []WriteOption) Op {
	op := Op{name: t.name(key), key: t.prefix + key}
	var o writeOptions
	for _, option := range options {
		option(&o)
	}
	text, err := t.encode(key, value)
	if key == "" {
		err = api.Errorf(api.Invalid, "write %s: key is empty", op.name)
	}
	op.err = err
	op.apply = []clientv3.Op{clientv3.OpPut(op.key, text, clientv3.WithLease(o.lease))}
	return op
}

// OpCreate writes a record that must not be there yet: api.Exists.
func (t *Table[T]) OpCreate(key string, value T, options ...WriteOption) Op {
	op := t.put(key, value, options)
	op.expect = expectAbsent
	return op
}

// OpPut writes a record whether it is there or not.
func (t *Table[T]) OpPut(key string, value T, options ...WriteOption) Op {
	return t.put(key, value, options)
}

// OpUpdate writes rec.Value over the record that rec was read from: api.Conflict when it changed, api.NotFound when it
// was deleted.
func (t *Table[T]) OpUpdate(rec Record[T], options ...WriteOption) Op {
	op := t.put(rec.Key, rec.Value, options)
	op.expect, op.exact = expectExact, rec.Revision
	return op
}

// OpDelete deletes the record that rec was read from: api.Conflict when it changed, api.NotFound when it was deleted.
func (t *Table[T]) OpDelete(rec Record[T]) Op {
	op := t.OpDeleteKey(rec.Key)
	op.expect, op.exact = expectExact, rec.Revision
	return op
}

// OpDeleteKey deletes a record whatever is in it: api.NotFound when it is not there.
func (t *Table[T]) OpDeleteKey(key string) Op {
	return Op{
		name: t.name(key), key: t.prefix + key, expect: expectPresent, frees: true,
		apply: []clientv3.Op{clientv3.OpDelete(t.prefix + key)},
	}
}

// OpClear deletes a record if it is there.
func (t *Table[T]) OpClear(key string) Op {
	op := t.OpDeleteKey(key)
	op.expect = expectNothing
	return op
}

// OpUnchanged writes nothing; it makes the transaction depend on rec: api.Conflict when it changed, api.NotFound when it
// was deleted.
func (t *Table[T]) OpUnchanged(rec Record[T]) Op {
	return Op{name: t.name(rec.Key), key: t.prefix + rec.Key, expect: expectExact, exact: rec.Revision}
}

// OpAbsent writes nothing; it makes the transaction depend on the record not being there: api.Exists.
func (t *Table[T]) OpAbsent(key string) Op {
	return Op{name: t.name(key), key: t.prefix + key, expect: expectAbsent}
}

// OpAbsentPrefix writes nothing; it makes the transaction depend on there being no record whose key begins with
// keyPrefix: api.Exists.
func (t *Table[T]) OpAbsentPrefix(keyPrefix string) Op {
	return Op{name: t.name(keyPrefix), key: t.prefix + keyPrefix, prefix: true, expect: expectAbsent}
}

func (o Op) condition() clientv3.Cmp {
	switch o.expect {
	case expectAbsent:
		c := clientv3.Compare(clientv3.CreateRevision(o.key), "=", 0)
		if o.prefix {
			c = c.WithPrefix() // holds for an empty range, and for no record that exists
		}
		return c
	case expectPresent:
		return clientv3.Compare(clientv3.CreateRevision(o.key), ">", 0)
	default:
		return clientv3.Compare(clientv3.ModRevision(o.key), "=", o.exact)
	}
}

// check reads whether the op's expectation is what made the transaction fail.
func (o Op) check(exists bool, modRevision int64) error {
	switch {
	case o.expect == expectNothing:
		return nil
	case o.expect == expectAbsent && exists:
		return api.Errorf(api.Exists, "%s exists already", o.name)
	case o.expect != expectAbsent && !exists:
		return api.Errorf(api.NotFound, "%s not found", o.name)
	case o.expect == expectExact && modRevision != o.exact:
		return api.Errorf(api.Conflict, "%s was changed by somebody else meanwhile: try again", o.name)
	}
	return nil
}

// Txn does all of ops or none, in one write, and returns the revision that the records written now have. The error is
// that of the first op whose expectation did not hold. There may be at most 120 ops, each for another key. In a cluster it
// is made again, without happening twice, until it is known what became of it or time is up: only then it is api.Unavailable.
func (s *Store) Txn(ctx context.Context, ops ...Op) (revision int64, err error) {
	c := commit{store: s, ops: ops}
	for _, op := range ops {
		if op.err != nil {
			return 0, op.err
		}
		c.apply = append(c.apply, op.apply...)
		if op.expect == expectNothing {
			continue
		}
		c.conditions = append(c.conditions, op.condition())
		get := []clientv3.OpOption{clientv3.WithKeysOnly(), clientv3.WithLimit(1)}
		if op.prefix {
			get = append(get, clientv3.WithPrefix())
		}
		c.look = append(c.look, clientv3.OpGet(op.key, get...))
	}
	what := "write " + ops[0].name
	revision, err = request(ctx, s, what, func(ctx context.Context) (int64, error) {
		if s.member != nil && !onlyFree(ops) {
			if err := s.member.admit(ctx, what, creates(ops)); err != nil {
				return 0, err
			}
		}
		if s.several() {
			return c.once(ctx)
		}
		return c.plainly(ctx)
	})
	if api.KindOf(err) == api.Unavailable {
		err = api.Errorf(api.Unavailable, "%w: it may or may not have happened", err)
	}
	return revision, err
}

// plainly makes the transaction in a store of which this process is the only member: what gets no answer there never will.
func (c *commit) plainly(ctx context.Context) (int64, error) {
	done, err := c.store.client().Txn(ctx).If(c.conditions...).Then(c.apply...).Else(c.look...).Commit()
	if err != nil {
		return 0, err
	}
	if !done.Succeeded {
		return 0, refusal(c.ops, done.Responses)
	}
	return done.Header.Revision, nil
}

// onlyFree says whether the transaction writes nothing but deletions.
func onlyFree(ops []Op) bool {
	return !slices.ContainsFunc(ops, func(op Op) bool { return len(op.apply) > 0 && !op.frees })
}

// creates says whether the transaction makes new records. A Put may or may not; it is taken for a change.
func creates(ops []Op) bool {
	return slices.ContainsFunc(ops, func(op Op) bool { return len(op.apply) > 0 && op.expect == expectAbsent })
}

// refusal says which expectation did not hold, from what was found of each.
func refusal(ops []Op, looked []*etcdserverpb.ResponseOp) error {
	i := 0
	for _, op := range ops {
		if op.expect == expectNothing {
			continue
		}
		found := looked[i].GetResponseRange()
		i++
		var modified int64
		if len(found.Kvs) > 0 {
			modified = found.Kvs[0].ModRevision
		}
		if err := op.check(len(found.Kvs) > 0, modified); err != nil {
			return err
		}
	}
	return api.Errorf(api.Conflict, "%s was changed by somebody else meanwhile: try again", ops[0].name)
}
