package host

import (
	"context"
	"errors"
	"os"
	"syscall"

	"polder/api"
)

// restoredVolume is the id of the copy that is to become the VE's volume. It is made first: a pool that has no room for it is found out
// before anything is lost.
func restoredVolume(r *pickRun) string { return "restore-" + r.ID }

func (h *Host) copySnapshot(ctx context.Context, r *pickRun) error {
	if _, _, _, err := h.present(ctx, r.State.VE); err != nil {
		return err
	}
	_, err := h.pool.Copy(ctx, r.State.Snapshot.volume(), restoredVolume(r))
	return err
}

func (h *Host) dropCopy(ctx context.Context, r *pickRun) error {
	return h.pool.Delete(ctx, restoredVolume(r))
}

// stopForRestore ends the VE at once: what it does is lost anyway.
func (h *Host) stopForRestore(ctx context.Context, r *pickRun) error {
	v, err := h.get(ctx, r.State.VE.Name)
	if err != nil {
		return err
	}
	if err := h.set(ctx, v.Name, func(v *VE) { v.State = api.Stopping }); err != nil {
		return err
	}
	return h.takeDown(ctx, v)
}

func (h *Host) swapVolume(ctx context.Context, r *pickRun) error {
	if _, err := h.pool.Volume(ctx, restoredVolume(r)); api.KindOf(err) == api.NotFound {
		return nil // it was done before
	} else if err != nil {
		return err
	}
	id := r.State.VE.ID
	if err := h.pool.Delete(ctx, id); err != nil {
		return err
	}
	if _, err := h.pool.Copy(ctx, restoredVolume(r), id); err != nil {
		return err
	}
	return h.pool.Delete(ctx, restoredVolume(r))
}

// startRestored starts the VE if it ran, or if the snapshot has its memory. One that can't be started has failed, with the reason: the
// restore itself is done.
func (h *Host) startRestored(ctx context.Context, r *pickRun) error {
	v, err := h.get(ctx, r.State.VE.Name)
	if err != nil {
		return err
	}
	was := r.State.VE.State
	run := r.State.Snapshot.Memory || was == api.Running || was == api.Paused
	err = h.set(ctx, v.Name, func(v *VE) {
		v.Snapshot, v.State, v.Reason, v.PID, v.StartedAt = r.State.Snapshot.Name, api.Stopped, "", 0, nil
		if run {
			v.State = api.Starting
		}
	})
	if err != nil {
		return err
	}
	switch s := r.State.Snapshot; {
	case s.Memory:
		err = h.forkFrom(ctx, v, h.snapshotDir(s), s.volume())
	case run:
		err = h.startVE(ctx, v)
	}
	if err != nil && ctx.Err() == nil {
		reason := err.Error()
		r.Log().Warn("a ve was restored and can't be started", "ve", v.Name, "error", err)
		if v, stop := h.get(ctx, v.Name); stop == nil {
			err = errors.Join(h.takeDown(ctx, v), h.set(ctx, v.Name, func(v *VE) { v.State, v.Reason = api.Failed, reason }))
		}
	}
	if err != nil {
		return err
	}
	if v, err = h.get(ctx, v.Name); err == nil {
		r.Result(v.shown())
	}
	return err
}

// blocksOf is what a file takes on its file system.
func blocksOf(d os.DirEntry) (api.Bytes, error) {
	info, err := d.Info()
	if err != nil {
		return 0, err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return api.Bytes(stat.Blocks * 512), nil
	}
	return api.Bytes(info.Size()), nil
}
