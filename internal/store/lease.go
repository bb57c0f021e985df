package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/lease"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"polder/api"
)

// Lease is a claim on records that ends when its owner does not renew it in time. How much of it is left is measured by the
// leader's monotonic clock, and a new leader gives every lease its whole time again; the owner measures by his own. Only how fast
// the clocks run matters, not what time they show.
type Lease struct {
	store *Store
	id    clientv3.LeaseID
	ttl   time.Duration
}

// Lease makes a lease that ends after ttl (whole seconds, at least 2; at least 8 in the store of a host alone) unless it is
// kept alive.
func (s *Store) Lease(ctx context.Context, ttl time.Duration) (*Lease, error) {
	return request(ctx, s, "make lease", func(ctx context.Context) (*Lease, error) {
		granted, err := s.client().Grant(ctx, int64((ttl+time.Second-1)/time.Second))
		if err != nil {
			return nil, err // one that was made after all ends by itself
		}
		return &Lease{store: s, id: granted.ID, ttl: time.Duration(granted.TTL) * time.Second}, nil
	})
}

// KeepAlive renews the lease until ctx is done. The channel is closed when the lease is not renewed any more: ctx is
// done, or the lease has ended, or the store has not answered for the lease's whole ttl.
func (l *Lease) KeepAlive(ctx context.Context) (<-chan struct{}, error) {
	if err := l.renew(ctx); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.keep(ctx)
	}()
	return ended, nil
}

func (l *Lease) keep(ctx context.Context) {
	// The time is that before the renewal was asked for, so that the owner never thinks that he has it longer than the store does.
	for asked := time.Now(); time.Since(asked) < l.ttl; {
		select {
		case <-time.After(l.ttl / 3):
		case <-ctx.Done():
			return
		case <-l.store.ctx.Done():
			return
		}
		for now := time.Now(); time.Since(asked) < l.ttl; now = time.Now() {
			err := l.renewBefore(ctx, asked.Add(l.ttl))
			if err == nil {
				asked = now
				break
			}
			if api.KindOf(err) != api.Unavailable {
				return
			}
		}
	}
}

func (l *Lease) renewBefore(ctx context.Context, end time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	return l.renew(ctx)
}

// renew asks the store once, and waits for the answer; api.NotFound when the lease has ended.
func (l *Lease) renew(ctx context.Context) error {
	_, err := request(ctx, l.store, "renew lease", func(ctx context.Context) (struct{}, error) {
		left, err := l.store.renew(ctx, l.id)
		if err == nil && left <= 0 {
			err = api.Errorf(api.NotFound, "renew lease: it has ended")
		}
		return struct{}{}, err
	})
	return err
}

// renew returns how many seconds the lease has now. etcd's own client tries for ever, without a pause.
func (s *Store) renew(ctx context.Context, id clientv3.LeaseID) (seconds int64, err error) {
	w := s.way.Load()
	if w.direct {
		seconds, err = s.member.etcd.Server.LeaseRenew(ctx, lease.LeaseID(id))
		if errors.Is(err, lease.ErrLeaseNotFound) {
			return 0, nil
		}
		if err != nil && ctx.Err() == nil {
			err = status.Error(codes.Unavailable, err.Error()) // there is no leader just now, or it does not answer
		}
		return seconds, err
	}
	stream, err := etcdserverpb.NewLeaseClient(w.client.ActiveConnection()).LeaseKeepAlive(ctx)
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, err
	}
	response, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	return response.TTL, nil
}

// Revoke ends the lease at once; its records are deleted. One that has ended is no error.
func (l *Lease) Revoke(ctx context.Context) error {
	_, err := request(ctx, l.store, "revoke lease", func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		done, err := l.store.client().Revoke(ctx, l.id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			err = nil
		}
		return done, err
	})
	return err
}
