package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/operation"
	"polder/internal/store"
)

type (
	takeRun = operation.Run[takeSnapshot]
	pickRun = operation.Run[pickSnapshot]
)

func (h *Host) registerSnapshots() {
	operation.Register(h.engine, operation.Definition[takeSnapshot]{
		Kind: "snapshot.create", AfterCrash: operation.Undo,
		Steps: []operation.Step[takeSnapshot]{
			{Name: "take", Do: h.doTakeSnapshot, Undo: h.undoTakeSnapshot},
			{Name: "record", Do: h.recordSnapshot, Undo: h.unrecordSnapshot},
		},
	})
	operation.Register(h.engine, operation.Definition[pickSnapshot]{
		Kind: "snapshot.delete", PointOfNoReturn: "forget",
		Steps: []operation.Step[pickSnapshot]{{Name: "forget", Do: h.forgetSnapshot}, {Name: "remove", Do: h.removeSnapshot}},
	})
	operation.Register(h.engine, operation.Definition[pickSnapshot]{
		Kind: "snapshot.restore", PointOfNoReturn: "stop", // what the VE was is lost then
		Steps: []operation.Step[pickSnapshot]{
			{Name: "copy", Do: h.copySnapshot, Undo: h.dropCopy},
			{Name: "stop", Do: h.stopForRestore},
			{Name: "volume", Do: h.swapVolume},
			{Name: "start", Do: h.startRestored},
		},
	})
}

// doTakeSnapshot copies the volume, and the memory where that is wanted.
func (h *Host) doTakeSnapshot(ctx context.Context, r *takeRun) error {
	v, impl, spec, err := h.present(ctx, r.State.VE)
	if err != nil {
		return err
	}
	s := &r.State.Snapshot
	take := func(ctx context.Context) error {
		_, err := h.pool.Copy(ctx, v.ID, s.volume())
		return err
	}
	began := time.Now()
	quiescer, ok := impl.(model.Quiescer)
	switch {
	case s.Memory:
		s.How = "with its memory"
		stood, err := h.freezeInto(ctx, impl.(model.Forker), spec, h.snapshotDir(*s), take)
		s.StoodMS = stood.Milliseconds()
		return err
	case v.State == api.Running && ok:
		s.How, err = quiescer.Quiesce(ctx, spec, take)
		s.StoodMS = time.Since(began).Milliseconds()
		return err
	case v.State == api.Running:
		s.How = "as after a power cut"
	default:
		s.How = "it was " + string(v.State)
	}
	return take(ctx)
}

func (h *Host) undoTakeSnapshot(ctx context.Context, r *takeRun) error {
	_, impl, spec, err := h.present(ctx, r.State.VE)
	switch api.KindOf(err) {
	case "":
		if forker, ok := impl.(model.Forker); ok && r.State.Snapshot.Memory {
			err = forker.Thaw(ctx, spec)
		} else if quiescer, ok := impl.(model.Quiescer); ok && r.State.VE.State == api.Running {
			err = quiescer.Release(ctx, spec)
		}
	case api.NotFound:
		err = nil
	}
	return errors.Join(err, h.dropSnapshot(ctx, r.State.Snapshot))
}

// present is the VE as it is now, and what its model needs. One that was deleted is api.NotFound.
func (h *Host) present(ctx context.Context, was VE) (VE, model.Model, model.Spec, error) {
	v, err := h.again(ctx, was)
	if err != nil {
		return v, nil, model.Spec{}, err
	}
	impl, spec, err := h.placed(ctx, v)
	return v, impl, spec, err
}

// dropSnapshot removes what a snapshot has on this host.
func (h *Host) dropSnapshot(ctx context.Context, s snapshot) error {
	return errors.Join(h.pool.Delete(ctx, s.volume()), os.RemoveAll(h.snapshotDir(s)))
}

func (h *Host) recordSnapshot(ctx context.Context, r *takeRun) error {
	s := r.State.Snapshot
	if rec, err := h.snapshots.Get(ctx, s.key()); err == nil && rec.Value.ID == s.ID {
		return nil // resumed
	}
	rec, err := h.ves.Get(ctx, r.State.VE.Name)
	if err != nil {
		return err
	}
	rec.Value.Snapshot, rec.Value.UpdatedAt = s.Name, time.Now().UTC()
	if _, err := h.store.Txn(ctx, h.snapshots.OpCreate(s.key(), s), h.ves.OpUpdate(rec)); err != nil {
		return err
	}
	r.Result(api.Snapshot{
		Name: s.Name, VE: r.State.VE.Name, Parent: s.Parent, Current: true, Memory: s.Memory, How: s.How, StoodMS: s.StoodMS,
		UsedBytes: h.snapshotUsage(ctx, s), CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt,
	})
	return nil
}

func (h *Host) unrecordSnapshot(ctx context.Context, r *takeRun) error {
	return h.forgetRecord(ctx, r.State.VE, r.State.Snapshot)
}

// forgetRecord removes a snapshot's record; its children, and the VE, come from its parent then.
func (h *Host) forgetRecord(ctx context.Context, v VE, s snapshot) error {
	rec, err := h.snapshots.Get(ctx, s.key())
	if api.KindOf(err) == api.NotFound || err == nil && rec.Value.ID != s.ID {
		return nil
	} else if err != nil {
		return err
	}
	ops := []store.Op{h.snapshots.OpDelete(rec)}
	all, _, err := h.snapshots.Snapshot(ctx, s.VE+"/")
	if err != nil {
		return err
	}
	for _, child := range all {
		if child.Value.Parent == s.Name {
			child.Value.Parent = s.Parent
			ops = append(ops, h.snapshots.OpUpdate(child))
		}
	}
	if ve, err := h.ves.Get(ctx, v.Name); err == nil && ve.Value.ID == v.ID && ve.Value.Snapshot == s.Name {
		ve.Value.Snapshot = s.Parent
		ops = append(ops, h.ves.OpUpdate(ve))
	}
	_, err = h.store.Txn(ctx, ops...)
	return err
}

func (h *Host) forgetSnapshot(ctx context.Context, r *pickRun) error {
	return h.forgetRecord(ctx, r.State.VE, r.State.Snapshot)
}

func (h *Host) removeSnapshot(ctx context.Context, r *pickRun) error {
	return h.dropSnapshot(ctx, r.State.Snapshot)
}

// deleteSnapshots removes all snapshots of a VE that is deleted.
func (h *Host) deleteSnapshots(ctx context.Context, v VE) error {
	list, err := h.snapshotsOf(ctx, v)
	if err != nil {
		return err
	}
	for _, s := range list {
		if err := errors.Join(h.dropSnapshot(ctx, s), h.forgetRecord(ctx, v, s)); err != nil {
			return err
		}
	}
	return nil
}

// snapshotUsage is what a snapshot takes.
func (h *Host) snapshotUsage(ctx context.Context, s snapshot) api.Bytes {
	if !s.Memory {
		return h.usage(ctx, s.volume(), "")
	}
	return h.usage(ctx, s.volume(), h.snapshotDir(s))
}

// usage is what a volume and a directory take, as far as that can be told.
func (h *Host) usage(ctx context.Context, volume, dir string) (used api.Bytes) {
	used, _ = h.pool.Usage(ctx, volume)
	if dir == "" {
		return used
	}
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		blocks, err := blocksOf(d)
		used += blocks
		return err
	})
	return used
}
