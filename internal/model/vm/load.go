package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"polder/api"
	"polder/internal/model"
)

// Blockers implements model.Mover.
func (m *Model) Blockers(ctx context.Context, ve model.Spec) ([]api.Blocker, error) {
	q, err := m.openMonitor(ctx, ve)
	if errors.Is(err, fs.ErrNotExist) {
		return []api.Blocker{{Reason: "it was started by an older polder, without a monitor for moves", Remedy: "polder restart " + ve.Name, Except: api.Cold}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what keeps vm %q from moving: %w", ve.Name, err)
	}
	defer q.Close()
	var all []api.Blocker
	got, err := q.migration(ctx)
	if err != nil {
		return nil, err
	}
	for _, reason := range got.Blocked {
		all = append(all, api.Blocker{Process: "qemu", Reason: reason, Except: api.Cold})
	}
	works, err := q.works(ctx)
	if err != nil {
		return nil, err
	}
	for id := range works {
		if id != mirrorWork && id != backupWork {
			all = append(all, api.Blocker{Process: "qemu", Reason: "its disk is being copied (" + id + ")", Remedy: "wait until that is done"})
		}
	}
	return all, nil
}

// Load implements model.Mover: QEMU compares samples of the memory at two moments. The VE hardly feels it.
func (m *Model) Load(ctx context.Context, ve model.Spec, d time.Duration) (model.Load, error) {
	load := model.Load{Memory: ve.Memory, DirtyRate: -1, Processes: 1, Throttle: true, Mirrored: true}
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return load, fmt.Errorf("load of vm %q: %w", ve.Name, err)
	}
	defer q.Close()
	if used, err := memoryUsed(ve); err == nil && used > 0 {
		load.Memory = min(used, ve.Memory)
	}
	load.Room = load.Memory
	if load.PostCopy, err = q.stopsBeforePostCopy(ctx); err != nil {
		return load, fmt.Errorf("load of vm %q: %w", ve.Name, err)
	}
	rate, err := q.dirtyRate(ctx, d)
	if err != nil {
		return load, fmt.Errorf("load of vm %q: %w", ve.Name, err)
	}
	load.DirtyRate = rate
	return load, nil
}

const (
	// leastSample is the shortest time in which QEMU samples.
	leastSample = 100 * time.Millisecond
	// sampleOverhead is what it takes beside.
	sampleOverhead = 100 * time.Millisecond
)

func (m *monitor) dirtyRate(ctx context.Context, d time.Duration) (api.Bytes, error) {
	if d < leastSample+sampleOverhead {
		return -1, nil
	}
	if status, err := m.status(ctx); err != nil || status != "running" {
		return 0, err
	}
	sample := min(d-sampleOverhead, 10*time.Second)
	if err := m.do(ctx, "calc-dirty-rate", map[string]any{"calc-time": sample.Milliseconds(), "calc-time-unit": "millisecond", "sample-pages": 512}); err != nil {
		return -1, err
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	rate := int64(-1)
	err := m.await(ctx, 10*time.Millisecond, func() (bool, error) {
		var got struct {
			Status string `json:"status"`
			Rate   int64  `json:"dirty-rate"` // MiB/s
		}
		err := m.ask(ctx, "query-dirty-rate", nil, &got)
		if got.Status == "measured" {
			rate = got.Rate
		}
		return got.Status == "measured", err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return -1, nil // it is not measured in time
	}
	if rate < 0 || rate > math.MaxInt64>>20 {
		return -1, err
	}
	return api.Bytes(rate) * api.MiB, err
}
