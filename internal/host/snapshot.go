package host

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/model"
	"polder/internal/operation"
)

// snapshot is the record of a snapshot in the store, under its VE's UUID and its name. Its volume has the snapshot's own id.
type snapshot struct {
	ID        string     `json:"id"`
	VE        string     `json:"ve"` // UUID
	Name      string     `json:"name"`
	Parent    string     `json:"parent,omitempty"`
	Memory    bool       `json:"memory,omitempty"`
	How       string     `json:"how,omitempty"`
	StoodMS   int64      `json:"stood_ms,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

func (s snapshot) key() string { return s.VE + "/" + s.Name }

// volume is the id of the copy of the VE's volume.
func (s snapshot) volume() string { return "snapshot-" + s.ID }

// snapshotDir is where the memory of a snapshot is.
func (h *Host) snapshotDir(s snapshot) string { return filepath.Join(h.cfg.Data, "snapshots", s.ID) }

// Snapshots lists a VE's snapshots, oldest first.
func (h *Host) Snapshots(ctx context.Context, name string) ([]api.Snapshot, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return nil, err
	}
	list, err := h.snapshotsOf(ctx, v)
	if err != nil {
		return nil, err
	}
	shown := []api.Snapshot{}
	for _, s := range list {
		one := api.Snapshot{
			Name: s.Name, VE: v.Name, Parent: s.Parent, Current: v.Snapshot == s.Name, Memory: s.Memory, How: s.How, StoodMS: s.StoodMS,
			CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt,
		}
		if v.Host == h.cfg.Name {
			one.UsedBytes = h.snapshotUsage(ctx, s)
		}
		shown = append(shown, one)
	}
	return shown, nil
}

// snapshotsOf are a VE's snapshots, oldest first.
func (h *Host) snapshotsOf(ctx context.Context, v VE) ([]snapshot, error) {
	recs, _, err := h.snapshots.Snapshot(ctx, v.ID+"/")
	list := make([]snapshot, len(recs))
	for i, rec := range recs {
		list[i] = rec.Value
	}
	slices.SortFunc(list, func(a, b snapshot) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Name, b.Name)) })
	return list, err
}

func (h *Host) snapshotOf(ctx context.Context, v VE, name string) (snapshot, error) {
	rec, err := h.snapshots.Get(ctx, v.ID+"/"+name)
	if api.KindOf(err) == api.NotFound {
		return snapshot{}, api.Errorf(api.NotFound, "ve %q has no snapshot %q (see: polder snapshot list %s)", v.Name, name, v.Name)
	}
	return rec.Value, err
}

// takeSnapshot is the state of the operation "snapshot.create".
type takeSnapshot struct {
	VE       VE       `json:"ve"`
	Snapshot snapshot `json:"snapshot"`
}

// CreateSnapshot takes a snapshot of a VE.
func (h *Host) CreateSnapshot(ctx context.Context, name string, req api.SnapshotRequest) (api.Operation, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return api.Operation{}, err
	}
	now := time.Now().UTC()
	s := snapshot{
		ID: uuid.NewString(), VE: v.ID, Name: req.Name, Parent: v.Snapshot, Memory: req.Memory, CreatedAt: now,
	}
	for n := 1; req.Name == ""; n++ {
		s.Name = now.Format("s20060102-150405")
		if n > 1 {
			s.Name += fmt.Sprintf("-%d", n)
		}
		if _, err := h.snapshots.Get(ctx, s.key()); err != nil {
			break // none has it, or the next who asks learns why not
		}
	}
	s.ExpiresAt, err = expiry(now, req.ExpiresSeconds)
	if err == nil {
		err = h.checkSnapshot(ctx, v, s)
	}
	if err != nil {
		return api.Operation{}, fmt.Errorf("snapshot ve %q: %w", name, err)
	}
	return operation.Start(ctx, h.engine, "snapshot.create", operation.Request{Target: "ve/" + name, Host: v.Host}, takeSnapshot{VE: v, Snapshot: s})
}

func (h *Host) checkSnapshot(ctx context.Context, v VE, s snapshot) error {
	if err := api.CheckName("snapshot", s.Name); err != nil {
		return err
	}
	if _, err := h.snapshots.Get(ctx, s.key()); err == nil {
		return api.Errorf(api.Exists, "it has a snapshot %q already: choose another name, or polder snapshot delete %s %s", s.Name, v.Name, s.Name)
	}
	if _, err := h.cluster.Reachable(ctx, v.Host); err != nil {
		return err
	}
	if !s.Memory {
		return nil
	}
	if v.State != api.Running {
		return api.Errorf(api.Precondition, "it is %s: only one that runs has memory; without --memory its disk is taken", v.State)
	}
	return h.canFork(v.Model)
}

// canFork is nil when VEs of a model can be frozen while they run.
func (h *Host) canFork(m api.Model) error {
	impl, err := h.modelOf(m)
	if err != nil {
		return err
	}
	if _, ok := impl.(model.Forker); !ok {
		return api.Errorf(api.Unsupported, "the memory of a running %s can't be taken: do it without", m)
	}
	return nil
}

// pickSnapshot is the state of the operations on a snapshot that is there.
type pickSnapshot struct {
	VE       VE       `json:"ve"`
	Snapshot snapshot `json:"snapshot"`
}

// DeleteSnapshot deletes a snapshot; those that came from it come from its parent then.
func (h *Host) DeleteSnapshot(ctx context.Context, name, of string) (api.Operation, error) {
	return h.onSnapshot(ctx, "snapshot.delete", name, of)
}

// RestoreSnapshot makes a VE what it was when a snapshot was taken. What it has become since is lost.
func (h *Host) RestoreSnapshot(ctx context.Context, name, of string) (api.Operation, error) {
	return h.onSnapshot(ctx, "snapshot.restore", name, of)
}

func (h *Host) onSnapshot(ctx context.Context, kind, name, of string) (api.Operation, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return api.Operation{}, err
	}
	s, err := h.snapshotOf(ctx, v, of)
	if err != nil {
		return api.Operation{}, err
	}
	if _, err := h.cluster.Reachable(ctx, v.Host); err != nil {
		return api.Operation{}, fmt.Errorf("ve %q: %w", name, err)
	}
	return operation.Start(ctx, h.engine, kind, operation.Request{Target: "ve/" + name, Host: v.Host, Frees: kind == "snapshot.delete"}, pickSnapshot{VE: v, Snapshot: s})
}
