package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"polder/api"
)

// tryLimit is how long a request to a cluster may take before it is made again, maybe of another member: a leader that dies
// takes along what it was asked, and etcd says so only after seven seconds. When a new leader could have been there for long the
// tries become longer, so that a cluster that is merely slow gets its chance.
const (
	tryLimit    = 700 * time.Millisecond
	tryPause    = 50 * time.Millisecond
	leaderSoon  = 3 * electionMS * time.Millisecond
	longerTries = 2
)

// several says whether others may have a part in the store's cluster.
func (s *Store) several() bool { return s.member == nil || s.peers }

// repeat makes a request until it gets an answer; f must be one that may be made twice.
func repeat[R any](ctx context.Context, s *Store, f func(context.Context) (R, error)) (R, error) {
	if !s.several() {
		return f(ctx)
	}
	ctx = clientv3.WithRequireLeader(ctx) // a member that is cut off from the others says so at once, unless it is in this process
	if isFreeing(ctx) {
		ctx = metadata.AppendToOutgoingContext(ctx, freeingHeader, "true")
	}
	var cause error
	limit := tryLimit
	for start := time.Now(); ; {
		if time.Since(start) > leaderSoon {
			limit *= longerTries
		}
		value, err := try(ctx, limit, f)
		if err == nil || !passes(err) || errors.Is(ctx.Err(), context.Canceled) {
			return value, err
		}
		if cause == nil || !isContext(err) {
			cause = err // says more than that time ran out
		}
		select {
		case <-time.After(tryPause):
		case <-ctx.Done():
			return value, cause
		}
	}
}

func try[R any](ctx context.Context, limit time.Duration, f func(context.Context) (R, error)) (R, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

// passes says whether another try may succeed.
func passes(err error) bool {
	var known *api.Error
	if errors.As(err, &known) || errors.Is(err, rpctypes.ErrUnhealthy) {
		return false
	}
	return isContext(err) || isCode(err, codes.Unavailable) || errors.Is(err, rpctypes.ErrTooManyRequests)
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		isCode(err, codes.Canceled) || isCode(err, codes.DeadlineExceeded)
}
