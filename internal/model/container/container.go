// Package container runs VEs as containers: crun, a user namespace with an id range of its own, a cgroup of its own, a
// volume whose ids are mapped by the mount. A system image boots its own init; an application image's command is PID 1
// itself.
//
// Nothing stays behind to watch over a container: crun ends as soon as it runs, PID 1's output goes to a file, its end
// is seen by pidfd, exec and console attach when asked. What a container leaves in the file system is in Spec.Dir's
// "container" directory and in crun's state under /run; no mount of the host's is held.
//
// It does not own the volume, the network or the id range, and knows nothing of the store. Memory holds nothing: every
// call looks at the kernel and at the record in Spec.Dir, so that any daemon can take over from any other at any time.
//
// A container stays as CRIU can dump it: crun makes the network namespace, seccomp refuses what cannot be carried, and
// systemd is told to leave memory-pressure triggers alone.
//
// # Moving
//
// A move makes the VE stand still in its cgroup's freezer, at both ends, and cuts it off by its NICs' gates: neither ends with
// whoever moves it. CRIU runs beside the VE, in the cgroup NAME.move, and is never killed in the middle of a dump by us. move.json
// is there while a VE stands still for a move; a VE that was paused before arrives, or stays, paused. What runs in the VE by exec
// or console is not a part of it, and blocks its move.
package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"polder/api"
	"polder/internal/crun"
	"polder/internal/model"
)

// stateDir is crun's: on a tmpfs, since containers end with the host's boot.
const stateDir = "/run/polder/crun"

// execDir has a directory for every command that runs in a container just now.
const execDir = "/run/polder/exec"

// Model is the container model; it implements model.Model, model.Execer, model.Consoler and model.Mover.
type Model struct{ runtime crun.Runtime }

// New makes the model. It touches nothing.
func New() *Model { return &Model{runtime: crun.Runtime{Root: stateDir}} }

// The model's own files of a VE, all below its Dir.
func bundleDir(ve model.Spec) string { return filepath.Join(ve.Dir, "container") }
func rootDir(ve model.Spec) string   { return filepath.Join(bundleDir(ve), "root") }
func lowerDir(ve model.Spec) string  { return filepath.Join(bundleDir(ve), "lower") }
func upperDir(ve model.Spec) string  { return filepath.Join(bundleDir(ve), "upper") }

// stoppingFile exists from the moment Stop lays hands on the VE until its next start: the VE then ends because it was
// asked to, however it ends, and whichever daemon sees it.
func stoppingFile(ve model.Spec) string { return filepath.Join(bundleDir(ve), "stopping") }

// Prepare makes the VE's directory.
func (m *Model) Prepare(ctx context.Context, ve model.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkSpec(ve); err != nil {
		return api.Errorf(api.Invalid, "prepare container %q: %w", ve.Name, err)
	}
	// The container's root user passes through it on the way to its root.
	if err := os.MkdirAll(bundleDir(ve), 0o711); err != nil {
		return err
	}
	return os.Chmod(bundleDir(ve), 0o711)
}

// Remove stops what may still run and removes the VE's directory and logs.
func (m *Model) Remove(ctx context.Context, ve model.Spec) error {
	if err := m.tidy(ctx, ve); err != nil {
		return api.Errorf(api.KindOf(err), "remove container %q: %w", ve.Name, err)
	}
	failed := os.RemoveAll(bundleDir(ve))
	for _, log := range []string{ve.LogPath(), oldLog(ve)} {
		if err := os.Remove(log); !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// Pause freezes all processes of the VE; it returns when they stand still.
func (m *Model) Pause(ctx context.Context, ve model.Spec) error { return m.freeze(ctx, ve, true) }

// Resume lets them go on.
func (m *Model) Resume(ctx context.Context, ve model.Spec) error { return m.freeze(ctx, ve, false) }

func (m *Model) freeze(ctx context.Context, ve model.Spec, on bool) error {
	if _, ok := m.running(ve); !ok {
		return api.Errorf(api.Precondition, "ve %q is not running: start it first", ve.Name)
	}
	if err := cgroupOf(ve).freeze(ctx, on); err != nil {
		// A freeze that some process cannot follow must not leave half a VE standing.
		if on {
			_ = cgroupOf(ve).set("cgroup.freeze", "0")
		}
		return api.Errorf(kindOf(ctx, err), "freeze container %q: %w", ve.Name, err)
	}
	return nil
}

// kindOf is the kind of an error, or what ctx has to do with it.
func kindOf(ctx context.Context, err error) api.Kind {
	switch ctx.Err() {
	case context.Canceled:
		return api.Cancelled
	case context.DeadlineExceeded:
		return api.Unavailable
	}
	return api.KindOf(err)
}
