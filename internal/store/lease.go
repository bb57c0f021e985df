package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Lease is a claim on records that ends when its owner does not renew it in time.
type Lease struct {
	store *Store
	id    clientv3.LeaseID
}

// Lease makes a lease that ends after ttl (whole seconds, at least 2) unless it is kept alive.
func (s *Store) Lease(ctx context.Context, ttl time.Duration) (*Lease, error) {
	return request(ctx, s, "make lease", func(ctx context.Context) (*Lease, error) {
		granted, err := s.client.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
		if err != nil {
			return nil, err
		}
		return &Lease{store: s, id: granted.ID}, nil
	})
}

// KeepAlive renews the lease until ctx is done. The channel is closed when the lease is not renewed any more: ctx is
// done, or the lease has ended, or the store has not answered for the lease's whole ttl.
func (l *Lease) KeepAlive(ctx context.Context) (<-chan struct{}, error) {
	renewed, err := l.store.client.KeepAlive(ctx, l.id)
	if err != nil {
		return nil, l.store.explain("renew lease", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range renewed {
		}
	}()
	return ended, nil
}

// Revoke ends the lease at once; its records are deleted.
func (l *Lease) Revoke(ctx context.Context) error {
	_, err := request(ctx, l.store, "revoke lease", func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		return l.store.client.Revoke(ctx, l.id)
	})
	return err
}
