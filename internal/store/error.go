package store

import (
	"context"
	"errors"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/raft/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"polder/api"
)

// explain gives an error of etcd its kind. Errors that have one already stay as they are.
func (s *Store) explain(what string, err error) error {
	var known *api.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	if cause := context.Cause(s.ctx); cause != nil {
		return api.Errorf(api.Unavailable, "%s: store stopped: %w", what, cause)
	}
	switch {
	case errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
		return api.Errorf(api.Precondition, "%s: it has not caught up with the others yet: try again later", what)
	case errors.Is(err, rpctypes.ErrTooManyLearners):
		return api.Errorf(api.Precondition, "%s: %d hosts are on their way to become members already: wait until one of them is, or remove it", what, maxLearners)
	case errors.Is(err, rpctypes.ErrUnhealthy), errors.Is(err, rpctypes.ErrMemberNotEnoughStarted):
		return api.Errorf(api.Precondition, "%s: too few members would answer then, or have not for %v yet: first start the ones that are down, or remove them", what, etcdserver.HealthInterval)
	case errors.Is(err, context.Canceled), status.Code(err) == codes.Canceled:
		return api.Errorf(api.Cancelled, "%s: %w", what, err)
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return api.Errorf(api.Precondition, "%s: its lease has ended", what)
	case isContext(err), isCode(err, codes.Unavailable), errors.Is(err, rpctypes.ErrTooManyRequests), isStopping(err):
		return api.Errorf(api.Unavailable, "%s: %s: %w", what, s.silence(err), err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), strings.Contains(err.Error(), "message larger than max"):
		return api.Errorf(api.Invalid, "%s: record is too large: %w", what, err)
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return api.Errorf(api.Invalid, "%s: it is about too many things at once for the store: make it several smaller ones, or start etcd with a larger --max-txn-ops", what)
	case isCode(err, codes.ResourceExhausted):
		return api.Errorf(api.Exhausted, "%s: %s", what, status.Convert(err).Message())
	}
	return api.Errorf(api.Internal, "%s: %w", what, err)
}

// silence says who does not answer.
func (s *Store) silence(err error) string {
	switch {
	case s.member == nil && errors.Is(err, rpctypes.ErrNoLeader):
		return "no majority of the members " + strings.Join(s.client().Endpoints(), ", ") + " answers"
	case s.member == nil:
		return "etcd " + strings.Join(s.client().Endpoints(), ", ") + " does not answer"
	case s.several() && s.member.etcd.Server.Leader() == 0:
		return "no majority of the members " + strings.Join(s.member.names(), ", ") + " answers"
	}
	return "store does not answer"
}

// isStopping says that the member that was asked is just stopping, which etcd has no code of its own for.
func isStopping(err error) bool {
	text := err.Error()
	return strings.Contains(text, raft.ErrStopped.Error()) || strings.Contains(text, "unexpected HTTP status code received from server")
}

func isCode(err error, code codes.Code) bool {
	var e rpctypes.EtcdError
	return errors.As(err, &e) && e.Code() == code || status.Code(err) == code
}
