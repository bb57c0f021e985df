//go:build integration

package host

import (
	"context"
	"testing"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/operation/operationtest"
)

// TestCopiesSurviveEveryFault runs the operations that copy a VE, or make it what a copy is.
func TestCopiesSurviveEveryFault(t *testing.T) {
	for _, c := range []struct {
		kind    string
		stopped bool // the VE is, before
		taken   bool // it has a snapshot, before
		start   func(*Host, context.Context) (api.Operation, error)
		// after it is done: the states of c1 and c2, and how many snapshots c1 has
		c1, c2    api.State
		snapshots int
	}{
		{"clone", true, false, func(h *Host, ctx context.Context) (api.Operation, error) {
			return h.Clone(ctx, "c1", api.CloneRequest{Name: "c2", Start: true})
		}, api.Stopped, api.Running, 0},
		{"snapshot.create", false, false, func(h *Host, ctx context.Context) (api.Operation, error) {
			return h.CreateSnapshot(ctx, "c1", api.SnapshotRequest{Name: "s"})
		}, api.Running, "", 1},
		{"snapshot.delete", false, true, func(h *Host, ctx context.Context) (api.Operation, error) { return h.DeleteSnapshot(ctx, "c1", "s") }, api.Running, "", 0},
		{"image.publish", true, false, func(h *Host, ctx context.Context) (api.Operation, error) {
			return h.Publish(ctx, "c1", api.PublishRequest{Alias: "made"})
		}, api.Stopped, "", 0},
		{"snapshot.restore", false, true, func(h *Host, ctx context.Context) (api.Operation, error) { return h.RestoreSnapshot(ctx, "c1", "s") }, api.Running, "", 1},
	} {
		t.Run(c.kind, func(t *testing.T) {
			operationtest.Exercise(t, operationtest.Harness{New: func(t testing.TB) operationtest.World {
				w := newWorld(t)
				engine := w.boot(t)
				w.importBusybox(t)
				t.Cleanup(func() { w.discard(t, "c1", "c2") })
				w.wait(t)(w.host.Launch(t.Context(), api.LaunchRequest{Name: "c1", Image: "busybox", Restart: api.RestartNever}))
				if c.stopped {
					w.wait(t)(w.host.Stop(t.Context(), "c1", api.StopRequest{Force: true}))
				}
				taken := 0
				if c.taken {
					w.wait(t)(w.host.CreateSnapshot(t.Context(), "c1", api.SnapshotRequest{Name: "s"}))
					taken = 1
				}
				before, state := w.traces(t), w.state(t, "c1")
				w.host.Close()
				must(t, engine.Close(t.Context()))
				return operationtest.World{
					Boot:  w.boot,
					Start: func(ctx context.Context, _ *operation.Engine) (api.Operation, error) { return c.start(w.host, ctx) },
					Crash: func(testing.TB) { w.host.Close() },
					Check: func(t testing.TB, o operationtest.Outcome) {
						c1, c2 := w.state(t, "c1"), w.state(t, "c2") // fails when a record does not say what is
						list, err := w.host.Snapshots(t.Context(), "c1")
						must(t, err)
						if o.Operation.State == api.OperationDone {
							if c1 != c.c1 || c2 != c.c2 || len(list) != c.snapshots {
								t.Errorf("done, and c1 is %q, c2 %q, with %d snapshots", c1, c2, len(list))
							}
							if c2 != "" { // the next world has one of that name, in the same cgroup
								w.wait(t)(w.host.Delete(t.Context(), "c2"))
							}
							return
						}
						if after := w.traces(t); c1 != state || c2 != "" || len(list) != taken || after != before {
							t.Errorf("%s, and c1 is %q, c2 %q, with %d snapshots; there is:\n%s\nbefore:\n%s", o.Operation.State, c1, c2, len(list), after, before)
						}
					},
				}
			}})
		})
	}
}
