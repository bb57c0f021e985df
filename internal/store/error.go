package store

import (
	"context"
	"errors"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
	place := "store"
	if s.member == nil {
		place = "etcd " + strings.Join(s.client.Endpoints(), ", ")
	}
	switch {
	case errors.Is(err, context.Canceled), status.Code(err) == codes.Canceled:
		return api.Errorf(api.Cancelled, "%s: %w", what, err)
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return api.Errorf(api.Unavailable, "%s: %s does not answer: %w", what, place, err)
	case isCode(err, codes.Unavailable):
		return api.Errorf(api.Unavailable, "%s: %s: %w", what, place, err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), strings.Contains(err.Error(), "message larger than max"):
		return api.Errorf(api.Invalid, "%s: record is too large: %w", what, err)
	case isCode(err, codes.ResourceExhausted):
		return api.Errorf(api.Exhausted, "%s: %w", what, err)
	}
	return api.Errorf(api.Internal, "%s: %w", what, err)
}

func isCode(err error, code codes.Code) bool {
	var e rpctypes.EtcdError
	return errors.As(err, &e) && e.Code() == code || status.Code(err) == code
}
