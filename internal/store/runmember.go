package store

import (
	"context"
	"errors"
	"log/slog"

	"polder/api"
)

// RunningMember is a member of the cluster in this process that is nobody's Store: of a host that becomes a member while it
// runs, and of a host that only votes.
type RunningMember struct {
	member *member
	ctx    context.Context // done when it was closed or has failed
	cancel context.CancelCauseFunc
}

// RunMember starts a member beside a Store that is a client, in Options.Dir. It blocks until the member is part of the cluster.
// Errors are those of Open.
func RunMember(ctx context.Context, o Options) (*RunningMember, error) {
	if o.Peering == nil || len(o.Endpoints) > 0 {
		return nil, api.Errorf(api.Invalid, "run a member of the store: want addresses to listen at, and no endpoints")
	}
	o = o.complete()
	r := &RunningMember{}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	ctx, cancel := withOpenTimeout(ctx)
	defer cancel()
	var err error
	if r.member, err = startMember(ctx, o, func(err error) { fail(o.Log, r.cancel, err) }); err != nil {
		r.cancel(err)
		return nil, err
	}
	return r, nil
}

func fail(log *slog.Logger, cancel context.CancelCauseFunc, err error) {
	log.Error("the store's member stopped", "error", err)
	cancel(err)
}

// Failed is closed when the member can not go on, and when it was closed; Err says which.
func (r *RunningMember) Failed() <-chan struct{} { return r.ctx.Done() }

// Err says why the member failed: api.Precondition when it was removed from the cluster; nil as long as it works, and when it
// was merely closed.
func (r *RunningMember) Err() error { return failure(r.ctx) }

func failure(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil && !errors.Is(err, errClosed) {
		return err
	}
	return nil
}

// Close stops the member. It blocks until the data are on disk.
func (r *RunningMember) Close() error {
	r.cancel(errClosed)
	return r.member.stop()
}
