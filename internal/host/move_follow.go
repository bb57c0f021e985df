package host

import (
	"context"
	"errors"
	"sync"
	"time"

	"polder/api"
	"polder/internal/model"
)

// A VE whose memory follows it (post-copy) goes on at the target once the record says so, and lives at both ends until all of it has
// come: the record's MemoryAt keeps the source's half from being swept. If either end dies meanwhile it is lost.

// sourcePatience is how long the source of a VE's memory may be gone, and sourceLook how often the target looks whether it is.
const (
	sourcePatience = 30 * time.Second
	sourceLook     = time.Second
)

func follower(m model.Mover, v VE) (model.Follower, error) {
	if f, ok := m.(model.Follower); ok {
		return f, nil
	}
	return nil, api.Errorf(api.Unsupported, "the memory of a %s can't follow it", v.Model)
}

// goAhead lets a VE go on whose memory is still at the source, which has to send it what it can't do without.
func (h *Host) goAhead(ctx context.Context, r *moveRun, spec model.Spec, f model.Follower) (model.Process, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	h.wg.Go(func() {
		if _, err := h.askServe(ctx, r, ""); err != nil {
			cancel(err)
		}
	})
	p, err := f.Enter(ctx, spec)
	if err != nil {
		return p, errors.Join(err, context.Cause(ctx))
	}
	return p, nil
}

// gather waits until all of a VE's memory is here.
func (h *Host) gather(ctx context.Context, r *moveRun, spec model.Spec, f model.Follower) error {
	err := f.Gather(ctx, spec, func(ctx context.Context, to string) error {
		_, err := h.askServe(ctx, r, to)
		if err != nil {
			r.Log().Warn("the memory of a ve does not follow it just now", "ve", spec.Name, "host", r.State.VE.Host, "error", err)
		}
		return err
	})
	if err != nil {
		return err
	}
	if n, err := h.askServe(ctx, r, ""); err == nil {
		r.State.Bytes += n
	}
	return nil
}

// whileSourceLives ends what it does when the source is gone for too long, over all tries: with errGone then.
func (h *Host) whileSourceLives(ctx context.Context, r *moveRun, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	watch.Go(func() { h.missSource(ctx, r, cancel) })
	err := do(ctx)
	if gone := context.Cause(ctx); errors.Is(gone, errGone) {
		err = gone
	}
	cancel(nil)
	watch.Wait()
	return err
}

// missSource gives up a VE whose source is gone for too long.
func (h *Host) missSource(ctx context.Context, r *moveRun, giveUp context.CancelCauseFunc) {
	ticker := time.NewTicker(sourceLook)
	defer ticker.Stop()
	if r.State.seen.IsZero() {
		r.State.seen = time.Now()
	}
	for time.Since(r.State.seen) < sourcePatience {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if _, err := h.cluster.Reachable(ctx, r.State.VE.Host); err == nil {
			r.State.seen = time.Now()
		}
	}
	giveUp(lostAt(r.State.VE.Host))
}

// lostAt is the end of a VE whose memory is out of reach.
func lostAt(host string) error {
	return api.Errorf(api.Unavailable, "its memory was still at host %q, which %w", host, errGone)
}

var errGone = errors.New("is gone: what was in it is lost")

// askServe asks the source to send what is missing.
func (h *Host) askServe(ctx context.Context, r *moveRun, to string) (api.Bytes, error) {
	var answer serveAnswer
	err := h.tell(ctx, r.State.VE.Host, movePath(r.ID, "serve"), serveRequest{VE: r.State.VE.ID, To: to}, &answer)
	return answer.Bytes, err
}

// serveFollower is the source's part: it sends a VE's memory after it.
func (h *Host) serveFollower(ctx context.Context, _ string, req serveRequest) (serveAnswer, error) {
	var answer serveAnswer
	recs, err := h.ves.List(ctx)
	if err != nil {
		return answer, err
	}
	for _, rec := range recs {
		v := rec.Value
		if v.ID != req.VE || v.MemoryAt != h.cfg.Name {
			continue
		}
		mover, err := h.mover(v.Model)
		if err != nil {
			return answer, err
		}
		f, err := follower(mover, v)
		if err != nil {
			return answer, err
		}
		spec, err := h.spec(ctx, v)
		if err != nil {
			return answer, err
		}
		answer.Bytes, err = f.Serve(ctx, spec, req.To)
		return answer, err
	}
	return answer, api.Errorf(api.Precondition, "no memory of ve %s is left at host %q", req.VE, h.cfg.Name)
}
