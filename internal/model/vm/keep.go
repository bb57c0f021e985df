package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"polder/api"
	"polder/internal/model"
)

// Keep takes back whatever Send has done: the migration is cancelled, the disk is the VE's alone again, and the VE goes on, unless
// it was paused before.
func (m *Model) Keep(ctx context.Context, ve model.Spec) (model.Process, error) {
	p, err := m.stay(ctx, ve)
	if err != nil {
		return p, fmt.Errorf("keep vm %q: %w", ve.Name, err)
	}
	return p, nil
}

func (m *Model) stay(ctx context.Context, ve model.Spec) (p model.Process, err error) {
	mark, err := readMoving(ve)
	if err != nil {
		return p, err
	}
	if mark != nil && mark.Target {
		return p, api.Errorf(api.Conflict, "it comes from another host: it can't be kept here")
	}
	if mark != nil {
		if err := m.takeBack(ctx, ve, mark.Paused); err != nil {
			return p, err
		}
	}
	return m.running(ve)
}

func (m *Model) takeBack(ctx context.Context, ve model.Spec, paused bool) error {
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return err
	}
	defer q.Close()
	return q.takeBack(ctx, ve, paused)
}

func (m *monitor) takeBack(ctx context.Context, ve model.Spec, paused bool) error {
	// What can't be tidied up must not keep the VE from going on: the next Send tries again.
	untidy := m.tidy(ctx)
	if api.KindOf(untidy) == api.Conflict {
		return untidy
	}
	status, err := m.status(ctx)
	if err != nil {
		return err
	}
	// One that has been sent whole is not merely paused: QEMU has given up its disks, and would not send it again. Only going on
	// mends that, for a moment, behind shut gates.
	if !paused || status == "postmigrate" {
		if err := m.do(ctx, "cont", nil); err != nil {
			return errors.Join(err, untidy)
		}
	}
	if paused {
		if err := m.do(ctx, "stop", nil); err != nil {
			return errors.Join(err, untidy)
		}
	}
	calm(ve)
	return errors.Join(m.gates(ctx, ve, true), untidy, arrived(ve))
}

// running is the process of a VE that must run.
func (m *Model) running(ve model.Spec) (model.Process, error) {
	w, err := find(ve)
	if err != nil {
		return model.Process{}, err
	}
	if w == nil {
		return model.Process{}, notRunning(ve)
	}
	return m.process(ve, w)
}

// Enter lets a received VE go on, unless it was paused at the source.
func (m *Model) Enter(ctx context.Context, ve model.Spec) (model.Process, error) {
	p, err := m.enter(ctx, ve)
	if err != nil {
		return p, fmt.Errorf("enter vm %q: %w", ve.Name, err)
	}
	return p, nil
}

func (m *Model) enter(ctx context.Context, ve model.Spec) (p model.Process, err error) {
	mark, err := readMoving(ve)
	if err != nil {
		return p, err
	}
	if mark == nil { // it has entered before
		return m.running(ve)
	}
	if !mark.Target {
		return p, api.Errorf(api.Conflict, "it has not come from another host: it can't enter here")
	}
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return p, err
	}
	defer q.Close()
	status, err := q.status(ctx)
	if err != nil {
		return p, err
	}
	if status == "inmigrate" && !mark.PostCopy {
		return p, api.Errorf(api.Precondition, "it has not arrived yet")
	}
	if err := q.gates(ctx, ve, true); err != nil {
		return p, err
	}
	if !mark.Paused {
		if err := q.do(ctx, "cont", nil); err != nil {
			return p, err
		}
	}
	if mark.PostCopy {
		if err := q.underWay(ctx); err != nil {
			return p, err
		}
	}
	if err := q.do(ctx, "announce-self", announcement()); err != nil {
		return p, err
	}
	if !mark.PostCopy { // else its memory is still to be gathered
		err = errors.Join(q.tidy(ctx), arrived(ve))
		calmSoon(ve)
	}
	if err != nil {
		return p, err
	}
	return m.running(ve)
}

// underWay waits until a VE runs that was told to as soon as the source has sent what it can't do without.
func (m *monitor) underWay(ctx context.Context) error {
	return m.await(ctx, 5*time.Millisecond, func() (bool, error) {
		got, err := m.migration(ctx)
		if err == nil {
			err = got.failed()
		}
		if err != nil {
			return false, err
		}
		status, err := m.status(ctx)
		return status != "inmigrate", err
	})
}

// announcement is how often a VE says where it is now, in milliseconds: switches learn it from the first that gets through.
func announcement() map[string]any {
	return map[string]any{"initial": 20, "max": 500, "rounds": 5, "step": 100}
}
