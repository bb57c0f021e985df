package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// A transaction whose answer is lost, because the leader or the member that was asked died, may or may not have happened. To
// be able to make it again, each transaction to a cluster also writes a marker, a key that nobody else writes, and expects
// the marker to be as this store last knew it. So it happens once at most, however often it is sent, and who sends it again
// sees what became of it:
//
//	If marker unchanged
//	Then If expectations hold
//	     Then write the records; marker = done
//	     Else look at what did not hold; marker = refused
//	Else look at the marker
//
// Refusals mark too, lest an earlier sending that is still on its way happens after all. A marker whose transaction got no
// answer to the end is not used again. The markers vanish with a lease some time after their writer.
const (
	markersRoot = "polder-writers/" // not below root: watches need not hear of them
	markDone    = "done"
	markRefused = "refused"
)

// markersTTL is how long a marker outlives its last use at least, markersUse how long a lease serves for new uses.
const (
	markersTTL = time.Hour
	markersUse = markersTTL / 2
)

type marker struct {
	key      string
	revision int64 // at which it was last written; 0: never
	lease    clientv3.LeaseID
}

// markers are those of one store.
type markers struct {
	prefix string

	mu    sync.Mutex // guards what follows; held while a lease is being made
	lease clientv3.LeaseID
	until time.Time
	free  []marker
	made  int
}

func newMarkers() *markers { return &markers{prefix: markersRoot + rand.Text() + "/"} }

func (m *markers) take(ctx context.Context, client *clientv3.Client) (marker, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); now.After(m.until) {
		granted, err := client.Grant(ctx, int64(markersTTL/time.Second))
		if err != nil {
			return marker{}, err
		}
		m.lease, m.until, m.free = granted.ID, now.Add(markersUse), nil
	}
	if n := len(m.free); n > 0 {
		taken := m.free[n-1]
		m.free = m.free[:n-1]
		return taken, nil
	}
	m.made++
	return marker{key: fmt.Sprint(m.prefix, m.made), lease: m.lease}, nil
}

func (m *markers) give(back marker) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if back.lease == m.lease {
		m.free = append(m.free, back)
	}
}

// forget is for a lease that ended before its time: this machine's clock stood still.
func (m *markers) forget(lease clientv3.LeaseID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if lease == m.lease {
		m.until = time.Time{}
	}
}

// commit is one transaction, in as many tries as it takes.
type commit struct {
	store       *Store
	ops         []Op
	conditions  []clientv3.Cmp
	apply, look []clientv3.Op

	marker  marker // with an empty key: none taken yet
	renewed bool
}

// once makes the transaction unless an earlier try did.
func (c *commit) once(ctx context.Context) (revision int64, err error) {
	s := c.store
	if c.marker.key == "" {
		if c.marker, err = s.markers.take(ctx, s.client()); err != nil {
			return 0, err
		}
	}
	mark := func(ops []clientv3.Op, text string) []clientv3.Op {
		return append(ops[:len(ops):len(ops)], clientv3.OpPut(c.marker.key, text, clientv3.WithLease(c.marker.lease)))
	}
	done, err := s.client().Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(c.marker.key), "=", c.marker.revision)).
		Then(clientv3.OpTxn(c.conditions, mark(c.apply, markDone), mark(c.look, markRefused))).
		Else(clientv3.OpGet(c.marker.key)).
		Commit()
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound) && !c.renewed: // nothing was written; it may be the marker's
		s.markers.forget(c.marker.lease)
		c.marker, c.renewed = marker{}, true
		return c.once(ctx)
	case err != nil:
		return 0, err
	case done.Succeeded:
		c.marker.revision = done.Header.Revision
		s.markers.give(c.marker)
		if inner := done.Responses[0].GetResponseTxn(); !inner.Succeeded {
			return 0, refusal(c.ops, inner.Responses)
		}
		return done.Header.Revision, nil
	}
	found := done.Responses[0].GetResponseRange().Kvs
	if len(found) == 0 {
		return 0, api.Errorf(api.Unavailable, "write %s: what became of it is not known any more", c.ops[0].name)
	}
	c.marker.revision = found[0].ModRevision
	if string(found[0].Value) == markDone {
		s.markers.give(c.marker)
		return c.marker.revision, nil
	}
	// Why it was refused got lost. What stands in the way now is as good an answer, and if nothing does any more then it was
	// somebody else's change.
	now, err := s.client().Txn(ctx).Then(c.look...).Commit()
	if err != nil {
		return 0, err
	}
	s.markers.give(c.marker)
	return 0, refusal(c.ops, now.Responses)
}
