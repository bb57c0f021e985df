package operation

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"polder/api"
	"polder/internal/store"
)

// holder is a lock in the store: which operation has it. An exclusive lock is the record x/KEY, a shared one s/KEY/ID.
type holder struct {
	Operation string `json:"operation"`
}

func exclusiveKey(key string) string { return "x/" + url.PathEscape(key) }

func sharedPrefix(key string) string { return "s/" + url.PathEscape(key) + "/" }

// merge gives every key once: the target is exclusive, and exclusive wins over shared.
func (r Request) merge() []Lock {
	all := r.Locks
	if r.Target != "" {
		all = append([]Lock{{Key: r.Target}}, r.Locks...)
	}
	index := map[string]int{}
	var merged []Lock
	for _, lock := range all {
		if i, ok := index[lock.Key]; ok {
			merged[i].Shared = merged[i].Shared && lock.Shared
			continue
		}
		index[lock.Key] = len(merged)
		merged = append(merged, lock)
	}
	return merged
}

// claim is what a transaction does to take a lock for an operation.
func (e *Engine) claim(lock Lock, id string) []store.Op {
	exclusive, shared := exclusiveKey(lock.Key), sharedPrefix(lock.Key)
	if lock.Shared {
		return []store.Op{e.locks.OpAbsent(exclusive), e.locks.OpCreate(shared+id, holder{id})}
	}
	return []store.Op{e.locks.OpCreate(exclusive, holder{id}), e.locks.OpAbsentPrefix(shared)}
}

// release is what a transaction does to give it up.
func (e *Engine) release(lock Lock, id string) store.Op {
	if lock.Shared {
		return e.locks.OpClear(sharedPrefix(lock.Key) + id)
	}
	return e.locks.OpClear(exclusiveKey(lock.Key))
}

// busy looks for who holds one of the locks, and says so as an api.Conflict; nil when all are free by now.
func (e *Engine) busy(ctx context.Context, locks []Lock) error {
	for _, lock := range locks {
		id, err := e.heldBy(ctx, lock)
		if err != nil {
			return err
		}
		if id == "" {
			continue
		}
		what := "running"
		if op, err := e.Get(ctx, id); err == nil {
			what = fmt.Sprintf("(%s) is %s", op.Kind, op.State)
		}
		return api.Errorf(api.Conflict, "%s is busy: operation %s %s; wait with: polder op watch %s", subject(lock.Key), id, what, id)
	}
	return nil
}

func (e *Engine) heldBy(ctx context.Context, lock Lock) (id string, err error) {
	rec, err := e.locks.Get(ctx, exclusiveKey(lock.Key))
	if err == nil || api.KindOf(err) != api.NotFound {
		return rec.Value.Operation, err
	}
	if lock.Shared {
		return "", nil
	}
	recs, _, err := e.locks.Snapshot(ctx, sharedPrefix(lock.Key))
	if err != nil || len(recs) == 0 {
		return "", err
	}
	return recs[0].Value.Operation, nil
}

// Holder is the operation that has a lock now, be it its target's or another one of its own; "": nobody.
func (e *Engine) Holder(ctx context.Context, key string) (id string, err error) {
	return e.heldBy(ctx, Lock{Key: key})
}

// subject turns "ve/c1" into `ve "c1"`.
func subject(key string) string {
	if noun, name, ok := strings.Cut(key, "/"); ok {
		return fmt.Sprintf("%s %q", noun, name)
	}
	return fmt.Sprintf("%q", key)
}

// describe turns "launch" and "ve/c1" into `launch ve "c1"`, and "image.import" and "image/a" into `import image "a"`.
func describe(kind, target string) string {
	if target == "" {
		return kind
	}
	if noun, verb, ok := strings.Cut(kind, "."); ok && strings.HasPrefix(target, noun+"/") {
		kind = verb
	}
	return kind + " " + subject(target)
}

// Held lists the keys of all locks that operations hold now, on all hosts.
func (e *Engine) Held(ctx context.Context) (keys []string, err error) {
	recs, err := e.locks.List(ctx)
	for _, rec := range recs {
		escaped := strings.Split(rec.Key, "/")[1]
		key, err := url.PathUnescape(escaped)
		if err != nil {
			return nil, api.Errorf(api.Internal, "lock %q: %w", rec.Key, err)
		}
		keys = append(keys, key)
	}
	return keys, err
}
