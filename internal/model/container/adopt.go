package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"polder/api"
	"polder/internal/model"
)

// Adopt finds the VE by its record and the kernel alone.
func (m *Model) Adopt(_ context.Context, ve model.Spec) (p model.Process, paused, ok bool, err error) {
	if _, _, err := readRecord(ve); err != nil {
		return p, false, false, api.Errorf(api.KindOf(err), "adopt container %q: %w", ve.Name, err)
	}
	w, ok := m.running(ve)
	if !ok {
		return p, false, false, nil
	}
	paused = cgroupOf(ve).frozen()
	if move, moving := readMove(ve); moving {
		paused = move.Paused // it stands still for the move
	}
	return process(ve, w), paused, true, nil
}

// running gives a watch of the VE's first process, if that is the one recorded and was let go. The caller closes it or
// lets it end.
func (m *Model) running(ve model.Spec) (*model.Watch, bool) {
	r, ok, err := readRecord(ve)
	if err != nil || !ok || m.runtime.Waiting(ve.ID) {
		return nil, false
	}
	w, err := model.WatchPID(r.PID)
	if err != nil {
		return nil, false
	}
	if w.StartTime != r.StartTime {
		w.Close() // the pid is another's by now
		return nil, false
	}
	return w, true
}

// process tells the VE's end as Exit.
func process(ve model.Spec, w *model.Watch) model.Process {
	exited := make(chan model.Exit, 1)
	go func() {
		defer close(exited)
		if status, ok := <-w.Exited; ok {
			exited <- exitOf(ve, status)
		}
	}()
	return model.Process{PID: w.PID, Exited: exited}
}

// exitReboot is the exit status with which a VE's systemd asks to be started again: systemd-nspawn's, and LXC's.
const exitReboot = 133

// exitOf judges how a VE ended. The kernel lets a reboot or a halt asked for inside a pid namespace look like death by
// SIGHUP or SIGINT to the parent (reboot(2)); from inside nothing else can kill its PID 1 with them. To everybody else,
// who must ask the pidfd, both are exit status 0: hence exitReboot, which systemd is told to use.
func exitOf(ve model.Spec, status model.ExitStatus) model.Exit {
	if _, err := os.Stat(stoppingFile(ve)); err == nil {
		return model.Exit{Reason: "stopped"}
	}
	switch {
	case !status.Known && orderly(ve):
		return model.Exit{Reason: "powered off"}
	case !status.Known:
		return model.Exit{Crashed: true, Reason: "ended; its exit status is not known (Linux 6.15 and later keep it)"}
	case status.Signal == syscall.SIGHUP, ve.App == nil && status.Signal == 0 && status.Code == exitReboot:
		return model.Exit{Reboot: true, Reason: "rebooted"}
	case status.Signal == syscall.SIGINT:
		return model.Exit{Reason: "powered off"}
	case status.Signal == 0 && status.Code == 0 && ve.App == nil:
		return model.Exit{Reason: "powered off"}
	case status.Signal == 0 && status.Code == 0:
		return model.Exit{Reason: "exit status 0"}
	}
	return model.Exit{Crashed: true, Reason: status.String()}
}

// orderly guesses, for want of an exit status, whether a system was shut down: systemd removes the cgroups of its services
// as it stops them; after a crash they are still there.
func orderly(ve model.Spec) bool {
	if ve.App != nil {
		return false
	}
	services := false
	err := filepath.WalkDir(string(cgroupOf(ve)), func(path string, entry fs.DirEntry, err error) error {
		services = services || err == nil && strings.HasSuffix(path, ".service")
		return err
	})
	return err == nil && !services || errors.Is(err, fs.ErrNotExist)
}
