package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/qmp"
)

const (
	// quitPatience is how long QEMU may take to write out its caches and exit before it is killed.
	quitPatience = 5 * time.Second
	// nudge is how often the power button is pressed: a press during boot is lost.
	nudge = 5 * time.Second
	// agentHaltPatience is how long the agent may take to accept the order to halt.
	agentHaltPatience = 2 * time.Second
)

// Stop asks the system inside to power off, by its agent or else by the power button; after grace QEMU is told to quit,
// and killed when it does not.
func (m *Model) Stop(ctx context.Context, ve model.Spec, grace time.Duration) error {
	w, err := find(ve)
	if err == nil && w != nil {
		err = m.halt(ctx, ve, w, grace)
		w.Close()
	}
	if err == nil {
		err = m.clean(ctx, ve)
	}
	if err != nil {
		return fmt.Errorf("stop vm %q: %w", ve.Name, err)
	}
	return nil
}

func (m *Model) halt(ctx context.Context, ve model.Spec, w *model.Watch, grace time.Duration) error {
	m.attached(ve).halting.Store(w.PID, true)
	if err := os.WriteFile(haltingFile(ve), nil, 0o600); err != nil {
		return err
	}
	if grace > 0 {
		graceful, cancel := context.WithTimeout(ctx, grace)
		over := m.powerOff(graceful, ve, w)
		cancel()
		if over {
			return nil
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	quit, cancel := context.WithTimeout(ctx, quitPatience)
	defer cancel()
	if c, err := qmp.Dial(quit, qmpSocket(ve)); err == nil {
		_ = c.Execute(quit, "quit", nil, nil)
		c.Close()
		if gone(quit, w) {
			return nil
		}
	}
	if err := w.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	kill, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if !gone(kill, w) {
		return api.Errorf(api.Internal, "qemu (pid %d) can't be killed: is it stuck in the kernel?", w.PID)
	}
	return nil
}

// gone waits for the end of QEMU, or of ctx.
func gone(ctx context.Context, w *model.Watch) bool {
	select {
	case <-w.Exited:
		return true
	case <-ctx.Done():
		return false
	}
}

// powerOff asks the system inside to halt until it has, or ctx ends.
func (m *Model) powerOff(ctx context.Context, ve model.Spec, w *model.Watch) bool {
	c, err := qmp.Dial(ctx, qmpSocket(ve))
	if err != nil {
		return gone(ctx, w)
	}
	defer c.Close()
	_ = c.Execute(ctx, "cont", nil, nil) // a paused system hears nothing
	asked, cancel := context.WithTimeout(ctx, agentHaltPatience)
	err = m.attached(ve).agent.halt(asked)
	cancel()
	for press := err != nil; ; press = true {
		if press {
			_ = c.Execute(ctx, "system_powerdown", nil, nil)
		}
		wait, cancel := context.WithTimeout(ctx, nudge)
		over := gone(wait, w)
		cancel()
		if over || ctx.Err() != nil {
			return over
		}
	}
}

// clean undoes what Start did besides the process, which has ended.
func (m *Model) clean(ctx context.Context, ve model.Spec) error {
	m.release(ve)
	var errs []error
	for _, nic := range ve.NICs {
		errs = append(errs, ve.Plug.Unplug(ctx, nic))
	}
	errs = append(errs, removeCgroup(ctx, ve), os.RemoveAll(keyDir(ve)), m.forbidFaults(ve.IDBase))
	for _, path := range []string{qmpSocket(ve), consoleSocket(ve), agentSocket(ve), moveSocket(ve), pidFile(ve), runningFile(ve), haltingFile(ve), movingFile(ve)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Remove deletes what Prepare made, and the VE's machine.
func (m *Model) Remove(ctx context.Context, ve model.Spec) error {
	m.release(ve)
	var errs []error
	for _, path := range []string{runDir(ve), varsFile(ve), seedFile(ve), ve.LogPath(), qemuLog(ve), ve.Dir + "/machine.json"} {
		errs = append(errs, os.RemoveAll(path))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove vm %q: %w", ve.Name, err)
	}
	return nil
}
