package operation_test

import (
	"context"
	"strings"
	"testing"

	"polder/api"
	"polder/internal/operation"
)

// Of a host that is gone for good, operations end as failed and free what they held; those of others go on.
func TestAbandon(t *testing.T) {
	w := newTwoHosts(t, nil)
	w.recover(t, w.h1) // h2 never comes up
	lost := map[string]string{}
	for _, target := range []string{"ve/handed-over", "ve/never-begun"} {
		req := operation.Request{Target: target, Locks: []operation.Lock{{Key: "image/x", Shared: true}}}
		if target == "ve/never-begun" {
			req.Host = "h2"
		}
		op, err := operation.Start(t.Context(), w.h1, "trip", req, trip{To: "h2"})
		if err != nil {
			t.Fatal(err)
		}
		lost[op.ID] = target
	}
	for id := range lost {
		awaitHost(t, w.h1, id, "h2")
	}
	if err := w.marks.Delete(t.Context(), "crossed"); err != nil {
		t.Fatal(err)
	}
	own, err := operation.Start(t.Context(), w.h1, "trip", operation.Request{Target: "ve/own"}, trip{To: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	if op := w.wait(t, own.ID); op.State != api.OperationDone {
		t.Errorf("an operation of another host ended %s: %+v", op.State, op.Error)
	}
	if err := w.h1.Abandon(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	for id, target := range lost {
		op, err := w.h1.Get(t.Context(), id)
		if err != nil || op.State != api.OperationFailed || op.Error == nil || !strings.Contains(op.Error.Detail, `host "h2" was removed`) {
			t.Errorf("%s is %s: %+v, %v", target, op.State, op.Error, err)
		}
	}
	if held, err := w.h1.Held(t.Context()); err != nil || len(held) > 0 {
		t.Errorf("locks %v are still held, %v", held, err)
	}
	// It comes up all the same: there is nothing for it to do.
	w.recover(t, w.h2)
	for id := range lost {
		if op := w.wait(t, id); op.State != api.OperationFailed {
			t.Errorf("it went on: %s", op.State)
		}
	}
}

// awaitHost returns once an operation is that host's.
func awaitHost(t *testing.T, e *operation.Engine, id, host string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last api.Operation
	_, err := e.Wait(ctx, id, func(op api.Operation) {
		if last = op; op.Host == host {
			cancel()
		}
	})
	if last.Host != host {
		t.Fatalf("operation %s is of %q, %v", id, last.Host, err)
	}
}
