package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"polder/api"
	"polder/internal/model"
)

// Keep lets a VE go on at the source.
func (m *Model) Keep(ctx context.Context, ve model.Spec) (model.Process, error) {
	p, err := m.keep(ctx, ve)
	if err != nil {
		return p, api.Errorf(kindOf(ctx, err), "keep container %q: %w", ve.Name, err)
	}
	return p, nil
}

func (m *Model) keep(ctx context.Context, ve model.Spec) (model.Process, error) {
	// A criu of another daemon's that is at it still: it takes back by itself what it has done.
	if err := moverOf(ve).leave(ctx); err != nil {
		return model.Process{}, err
	}
	if _, moving := readMove(ve); moving {
		if err := mend(ctx, ve); err != nil {
			return model.Process{}, err
		}
	}
	return m.goOn(ctx, ve)
}

// Enter lets a received VE go on.
func (m *Model) Enter(ctx context.Context, ve model.Spec) (model.Process, error) {
	p, err := m.goOn(ctx, ve)
	if err != nil {
		return p, api.Errorf(kindOf(ctx, err), "enter container %q: %w", ve.Name, err)
	}
	return p, nil
}

// goOn opens the gates of a VE that stands still for a move, and lets it go on unless it was paused before. The record goes last:
// until then all of it can be repeated.
func (m *Model) goOn(ctx context.Context, ve model.Spec) (model.Process, error) {
	w, ok := m.running(ve)
	if !ok {
		return model.Process{}, api.Errorf(api.Precondition, "its processes are gone")
	}
	record, moving := readMove(ve)
	if !moving {
		return process(ve, w), nil
	}
	err := func() error {
		if err := gates(ctx, ve, true); err != nil {
			return err
		}
		if err := announce(ve, w.PID); err != nil {
			return err
		}
		if err := cgroupOf(ve).freeze(ctx, record.Paused); err != nil {
			return err
		}
		return errors.Join(unmountRoot(ve), unmountImages(ve), moverOf(ve).leave(ctx), forgetMove(ve))
	}()
	if err != nil {
		w.Close()
		return model.Process{}, err
	}
	return process(ve, w), nil
}

// moverLimit is how long a criu that nobody waits for any more may take to end.
const moverLimit = 10 * time.Second

// leave waits until nothing runs in the group, and removes it; what does not end is killed.
func (c cgroup) leave(ctx context.Context) error {
	if _, err := os.Stat(string(c)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, moverLimit)
	defer cancel()
	_ = c.await(limit, "populated 0")
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.destroy(ctx)
}
