package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// Stop asks the VE's first process to end, kills all of the VE after grace, and takes away what Start made.
func (m *Model) Stop(ctx context.Context, ve model.Spec, grace time.Duration) error {
	if err := m.halt(ctx, ve, grace); err != nil {
		return api.Errorf(kindOf(ctx, err), "stop container %q: %w", ve.Name, err)
	}
	if err := m.tidy(ctx, ve); err != nil {
		return api.Errorf(kindOf(ctx, err), "stop container %q: %w", ve.Name, err)
	}
	return nil
}

// halt marks the VE as stopping, and gives it grace to do so by itself. When ctx ends first the VE is let alone.
func (m *Model) halt(ctx context.Context, ve model.Spec, grace time.Duration) error {
	w, ok := m.running(ve)
	if !ok {
		return nil
	}
	defer w.Close()
	if err := os.WriteFile(stoppingFile(ve), nil, 0o600); err != nil {
		return err
	}
	if grace <= 0 {
		return nil
	}
	err := m.askAndWait(ctx, ve, w, grace)
	if err != nil {
		err = errors.Join(err, os.Remove(stoppingFile(ve)))
	}
	return err
}

func (m *Model) askAndWait(ctx context.Context, ve model.Spec, w *model.Watch, grace time.Duration) error {
	signal, err := haltSignal(ve, w.PID)
	if err != nil {
		return err
	}
	if err := w.Signal(signal); err != nil {
		return err
	}
	if cgroupOf(ve).frozen() {
		if err := cgroupOf(ve).freeze(ctx, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-w.Exited:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// haltSignal is what makes the VE's first process halt the VE.
func haltSignal(ve model.Spec, pid int) (syscall.Signal, error) {
	if ve.App == nil {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(comm)) != "systemd" {
			return unix.SIGPWR, nil // what other inits take for a halt
		}
		return haltSystemd, nil
	}
	if ve.App.StopSignal == "" {
		return unix.SIGTERM, nil
	}
	signal, ok := parseSignal(ve.App.StopSignal)
	if !ok {
		return 0, api.Errorf(api.Invalid, "its image has the unknown stop signal %q", ve.App.StopSignal)
	}
	return signal, nil
}

// haltSystemd is SIGRTMIN+3, "halt" in systemd(1); the C library's SIGRTMIN is 34.
const haltSystemd = syscall.Signal(34 + 3)

// parseSignal reads "TERM", "SIGTERM", "15" or "SIGRTMIN+3".
func parseSignal(s string) (syscall.Signal, bool) {
	s = strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, err := id(s); err == nil {
		return syscall.Signal(n), n >= 1 && n <= 64
	}
	for _, base := range []struct {
		name   string
		number int
	}{{"RTMIN", 34}, {"RTMAX", 64}} {
		if rest, ok := strings.CutPrefix(s, base.name); ok {
			var offset int
			if rest != "" {
				if n, err := fmt.Sscanf(rest, "%d", &offset); err != nil || n != 1 {
					return 0, false
				}
			}
			n := base.number + offset
			return syscall.Signal(n), n >= 34 && n <= 64
		}
	}
	signal := unix.SignalNum("SIG" + s)
	return signal, signal != 0
}

// tidy makes sure that nothing of the VE runs, and takes away all that Start makes, in whatever state that is. A VE that
// ended by itself leaves its cgroup and crun's state to it.
func (m *Model) tidy(ctx context.Context, ve model.Spec) error {
	w, running := m.running(ve)
	// First what could make more of the VE.
	for _, group := range []cgroup{moverOf(ve), cgroupOf(ve)} {
		if err := group.destroy(ctx); err != nil {
			return err
		}
	}
	if running {
		select {
		case <-w.Exited: // killed with its cgroup
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	failed := m.runtime.Delete(ctx, ve.ID)
	failed = errors.Join(failed, unmountRoot(ve), unmountImages(ve), forgetMove(ve))
	for _, nic := range ve.NICs {
		failed = errors.Join(failed, ve.Plug.Unplug(ctx, nic))
	}
	if err := os.Remove(recordFile(ve)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		failed = errors.Join(failed, err)
	}
	left, _ := filepath.Glob(filepath.Join(execDir, ve.ID+".*"))
	for _, dir := range left {
		failed = errors.Join(failed, os.RemoveAll(dir))
	}
	return failed
}
