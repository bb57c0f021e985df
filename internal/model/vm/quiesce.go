package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"polder/api"
	"polder/internal/model"
)

var _ model.Quiescer = (*Model)(nil)

const (
	// quiescePatience is how long the agent may take to freeze the file systems inside.
	quiescePatience = 10 * time.Second
	// thawPatience is how long file systems inside may be frozen: programs that write wait for that.
	thawPatience = 5 * time.Second
)

// Quiesce implements model.Quiescer: the agent freezes the file systems inside, and thaws them after thawPatience at the latest. A VE
// without an agent is stopped for the moment: its disk is as after a power cut.
func (m *Model) Quiesce(ctx context.Context, ve model.Spec, do func(ctx context.Context) error) (string, error) {
	line := m.attached(ve).agent
	freezing, cancel := context.WithTimeout(ctx, quiescePatience)
	defer cancel()
	err := m.answersInside(freezing, ve)
	if err == nil {
		err = line.call(freezing, "guest-fsfreeze-freeze", nil, nil)
	}
	if err != nil && ctx.Err() != nil {
		return "", errors.Join(ctx.Err(), m.Release(ctx, ve))
	}
	if err != nil {
		return "it was stopped, for its agent could not freeze its file systems", errors.Join(m.Release(ctx, ve), m.whileStopped(ctx, ve, do))
	}
	within, cancel := context.WithTimeoutCause(ctx, thawPatience, api.Errorf(api.Unavailable, "its file systems were frozen for %s", thawPatience))
	defer cancel()
	err = do(within)
	return "its agent froze its file systems", errors.Join(err, m.Release(ctx, ve))
}

// whileStopped calls do while the VE's CPUs stand still.
func (m *Model) whileStopped(ctx context.Context, ve model.Spec, do func(ctx context.Context) error) error {
	if err := m.Pause(ctx, ve); err != nil {
		return err
	}
	return errors.Join(do(ctx), m.Resume(context.WithoutCancel(ctx), ve))
}

// Release implements model.Quiescer. A VE without an agent has nothing frozen; one that stands still goes on.
func (m *Model) Release(ctx context.Context, ve model.Spec) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quiescePatience)
	defer cancel()
	if pid, err := holder(ve); err != nil || pid == 0 {
		return err
	}
	if status, err := queryStatus(ctx, ve); err == nil && status == "paused" {
		if err := m.Resume(ctx, ve); err != nil {
			return err
		}
	}
	if m.answersInside(ctx, ve) != nil {
		return nil
	}
	if err := unlessRefused(m.attached(ve).agent.call(ctx, "guest-fsfreeze-thaw", nil, nil)); err != nil {
		return fmt.Errorf("thaw the file systems of vm %q: %w", ve.Name, err)
	}
	return nil
}
