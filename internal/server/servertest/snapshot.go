package servertest

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"polder/api"
)

// Snapshots implements server.Backend.
func (b *Backend) Snapshots(_ context.Context, name string) ([]api.Snapshot, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.ve(name); err != nil {
		return nil, err
	}
	return slices.Clone(b.snapshots[name]), nil
}

// CreateSnapshot implements server.Backend.
func (b *Backend) CreateSnapshot(_ context.Context, name string, req api.SnapshotRequest) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ve, err := b.ve(name)
	if err != nil {
		return api.Operation{}, err
	}
	s := api.Snapshot{
		Name: cmp.Or(req.Name, "s20260102-030405"), VE: name, Current: true, Memory: req.Memory, How: "it was " + string(ve.State),
		StoodMS: 12, UsedBytes: api.MiB, CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	if b.snapshotAt(name, s.Name) >= 0 {
		return api.Operation{}, api.Errorf(api.Exists, "snapshot ve %q: it has a snapshot %q already", name, s.Name)
	}
	var record *operation
	op := b.start("snapshot.create", "ve/"+name, ve.Labels["snapshot"], func() {
		for i := range b.snapshots[name] {
			if one := &b.snapshots[name][i]; one.Current {
				one.Current, s.Parent = false, one.Name
			}
		}
		b.snapshots[name] = append(b.snapshots[name], s)
		record.Result, _ = json.Marshal(s)
	})
	record = b.ops[len(b.ops)-1] // the effect comes later: mu is held until here
	return op, nil
}

// RestoreSnapshot implements server.Backend.
func (b *Backend) RestoreSnapshot(_ context.Context, name, snapshot string) (api.Operation, error) {
	return b.onSnapshot("snapshot.restore", name, snapshot, func(at int) {
		for i := range b.snapshots[name] {
			b.snapshots[name][i].Current = i == at
		}
	})
}

// DeleteSnapshot implements server.Backend.
func (b *Backend) DeleteSnapshot(_ context.Context, name, snapshot string) (api.Operation, error) {
	return b.onSnapshot("snapshot.delete", name, snapshot, func(at int) { b.snapshots[name] = slices.Delete(b.snapshots[name], at, at+1) })
}

func (b *Backend) onSnapshot(kind, name, snapshot string, do func(at int)) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.ve(name); err != nil {
		return api.Operation{}, err
	}
	if b.snapshotAt(name, snapshot) < 0 {
		return api.Operation{}, api.Errorf(api.NotFound, "ve %q has no snapshot %q", name, snapshot)
	}
	return b.start(kind, "ve/"+name, "", func() { do(b.snapshotAt(name, snapshot)) }), nil
}

func (b *Backend) snapshotAt(ve, name string) int {
	return slices.IndexFunc(b.snapshots[ve], func(s api.Snapshot) bool { return s.Name == name })
}

// ScheduleSnapshots implements server.Backend.
func (b *Backend) ScheduleSnapshots(_ context.Context, name string, s *api.SnapshotSchedule) (api.VE, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ve, err := b.ve(name)
	if err == nil && s != nil {
		err = s.Check()
	}
	if err != nil {
		return api.VE{}, err
	}
	ve.Schedule = s
	b.ves[name] = ve
	return ve, nil
}
