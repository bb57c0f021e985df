package host

import (
	"context"
	"errors"
	"time"

	"polder/api"
)

// expireEvery is how often is looked for VEs and snapshots whose time is over, or has come.
const expireEvery = 15 * time.Second

// expiry is when what lives for so long is over; nil: never.
func expiry(now time.Time, seconds int64) (*time.Time, error) {
	const most = 100 * 365 * 24 * 3600
	switch {
	case seconds == 0:
		return nil, nil //nolint:nilnil // see above
	case seconds < 0 || seconds > most:
		return nil, api.Errorf(api.Invalid, "%d seconds to live: want a positive number", seconds)
	}
	at := now.Add(time.Duration(seconds) * time.Second)
	return &at, nil
}

// expireNowAndThen deletes this host's VEs and snapshots whose time is over, and takes the snapshots that are due, until the host is closed.
func (h *Host) expireNowAndThen() {
	ticker := time.NewTicker(expireEvery)
	defer ticker.Stop()
	for {
		if err := h.expire(h.ctx, time.Now()); err != nil && h.ctx.Err() == nil {
			h.log.Warn("what is due can't be deleted or taken just now", "error", err)
		}
		select {
		case <-h.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (h *Host) expire(ctx context.Context, now time.Time) error {
	ves, err := h.ves.List(ctx)
	if err != nil {
		return err
	}
	over := func(at *time.Time) bool { return at != nil && !now.Before(*at) }
	var failed []error
	began := func(_ api.Operation, err error) {
		if err != nil && api.KindOf(err) != api.Conflict { // busy: next time
			failed = append(failed, err)
		}
	}
	mine := map[string]string{}
	for _, rec := range ves {
		if rec.Value.Host != h.cfg.Name {
			continue
		}
		mine[rec.Value.ID] = rec.Value.Name
		if over(rec.Value.ExpiresAt) {
			began(h.Delete(ctx, rec.Value.Name))
		} else {
			began(h.snapshotDue(ctx, rec.Value, now))
		}
	}
	snapshots, err := h.snapshots.List(ctx)
	if err != nil {
		return err
	}
	for _, rec := range snapshots {
		if name, here := mine[rec.Value.VE]; here && over(rec.Value.ExpiresAt) {
			began(h.DeleteSnapshot(ctx, name, rec.Value.Name))
		}
	}
	return errors.Join(failed...)
}
