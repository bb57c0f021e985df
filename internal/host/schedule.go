package host

import (
	"context"
	"fmt"
	"time"

	"polder/api"
)

// schedule is when snapshots of a VE are taken.
type schedule struct {
	api.SnapshotSchedule
	Next time.Time `json:"next"`
}

// ScheduleSnapshots has snapshots of a VE taken by themselves from now on; nil: no more. Those that there are stay.
func (h *Host) ScheduleSnapshots(ctx context.Context, name string, want *api.SnapshotSchedule) (api.VE, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return api.VE{}, err
	}
	if want != nil {
		err = want.Check()
		if err == nil && want.Memory {
			err = h.canFork(v.Model)
		}
	}
	if err != nil {
		return api.VE{}, fmt.Errorf("schedule snapshots of ve %q: %w", name, err)
	}
	err = h.set(ctx, name, func(v *VE) {
		if v.Schedule = nil; want != nil {
			v.Schedule = &schedule{SnapshotSchedule: *want, Next: time.Now().UTC()}
		}
	})
	if err != nil {
		return api.VE{}, err
	}
	return h.VE(ctx, name)
}

// snapshotDue takes a VE's next snapshot if it is time. One that does not run does not change: its next one is taken when it runs again.
func (h *Host) snapshotDue(ctx context.Context, v VE, now time.Time) (api.Operation, error) {
	s := v.Schedule
	if s == nil || now.Before(s.Next) || v.State != api.Running {
		return api.Operation{}, nil
	}
	op, err := h.CreateSnapshot(ctx, v.Name, api.SnapshotRequest{
		Name: now.UTC().Format("auto-20060102-150405"), Memory: s.Memory, ExpiresSeconds: s.KeepSeconds,
	})
	if err != nil {
		return op, err
	}
	every := time.Duration(s.EverySeconds) * time.Second
	return op, h.set(ctx, v.Name, func(v *VE) {
		if v.Schedule != nil && v.Schedule.Next.Equal(s.Next) {
			v.Schedule.Next = s.Next.Add(now.Sub(s.Next).Truncate(every) + every) // those that were missed are not made up for
		}
	})
}
