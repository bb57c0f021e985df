package operation_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"polder/api"
	"polder/internal/operation"
)

func TestCancelEndsTheStepUnderWay(t *testing.T) {
	s := openStore(t)
	e, other := newEngine(t, s, "h1"), newEngine(t, s, "h2")
	hold, began, _ := blocking("hold")
	register(e, "launch", plain("a", nil), hold)
	op := start(t, e, "launch", operation.Request{Target: "ve/c1"})
	<-began
	if err := other.Cancel(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	end := wait(t, e, op.ID)
	wantEnd(t, end, api.OperationCancelled, `launch ve "c1": cancelled at step "hold"`)
	if end.Error.Kind != api.Cancelled {
		t.Errorf("error is %+v", end.Error)
	}
	wantFree(t, e)
	wantKind(t, e.Cancel(t.Context(), op.ID), api.Precondition)
	wantKind(t, e.Cancel(t.Context(), "nobody"), api.NotFound)
}

func TestNoCancelAfterPointOfNoReturn(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	hold, began, release := blocking("hold")
	operation.Register(e, operation.Definition[state]{Kind: "delete", Steps: []step{plain("a", nil), hold}, PointOfNoReturn: "hold"})
	op := start(t, e, "delete", operation.Request{Target: "ve/c1"})
	<-began
	if now, err := e.Get(t.Context(), op.ID); err != nil || now.Cancellable {
		t.Errorf("operation is %+v, %v", now, err)
	}
	wantKind(t, e.Cancel(t.Context(), op.ID), api.Precondition)
	close(release)
	wantEnd(t, wait(t, e, op.ID), api.OperationDone, "")
}

func TestForwardOnlyAfterPointOfNoReturn(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	var tries atomic.Int32
	forward := step{
		Name: "b",
		Do: func(context.Context, *run) error {
			if tries.Add(1) < 4 {
				return errors.New("not yet")
			}
			return nil
		},
		Undo: func(context.Context, *run) error { t.Error("undone after the point of no return"); return nil },
	}
	operation.Register(e, operation.Definition[state]{Kind: "delete", Steps: []step{plain("a", nil), forward}, PointOfNoReturn: "b"})
	wantEnd(t, wait(t, e, start(t, e, "delete", operation.Request{}).ID), api.OperationDone, "")
}

func TestWaitGivesEveryChange(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	hold, began, release := blocking("a")
	register(e, "launch", hold, plain("b", nil))
	op := start(t, e, "launch", operation.Request{})
	<-began
	var seen []string
	_, err := e.Wait(t.Context(), op.ID, func(op api.Operation) {
		if seen == nil {
			close(release)
		}
		seen = append(seen, string(op.State)+" "+op.Step)
	})
	if err != nil || len(seen) != 3 || seen[0] != "running a" || seen[1] != "running b" || seen[2] != "done " {
		t.Errorf("seen %q, %v", seen, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = e.Wait(ctx, op.ID, nil)
	wantKind(t, err, api.Cancelled)
	_, err = e.Wait(t.Context(), "nobody", nil)
	wantKind(t, err, api.NotFound)
}

func TestRecoverResumesWhatCloseLeft(t *testing.T) {
	s := openStore(t)
	e := newEngine(t, s, "h1")
	hold, began, _ := blocking("hold")
	register(e, "launch", plain("a", nil), hold)
	op := start(t, e, "launch", operation.Request{Target: "ve/c1"})
	<-began
	closeEngine(t, e)

	other := newEngine(t, s, "h2") // not its business
	register(other, "launch", plain("a", nil), plain("hold", nil))
	if err := other.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := operation.Start(t.Context(), other, "launch", operation.Request{Target: "ve/c1"}, state{})
	wantKind(t, err, api.Conflict)

	again := newEngine(t, s, "h1")
	register(again, "launch", plain("a", nil), plain("hold", nil))
	if err := again.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	end := wait(t, again, op.ID)
	wantEnd(t, end, api.OperationDone, "")
	if string(end.Result) != `["a","hold"]` {
		t.Errorf("result is %s: the state of the first step is lost, or it ran twice", end.Result)
	}
	wantFree(t, again)
}

func TestCancelledBeforeACrashIsUndoneAfterIt(t *testing.T) {
	s := openStore(t)
	e := newEngine(t, s, "h1")
	hold, began, _ := blocking("hold")
	register(e, "launch", hold)
	op := start(t, e, "launch", operation.Request{})
	<-began
	closeEngine(t, e)
	if err := newEngine(t, s, "h2").Cancel(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	again := newEngine(t, s, "h1")
	register(again, "launch", hold)
	if err := again.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, wait(t, again, op.ID), api.OperationCancelled, `launch: cancelled at step "hold"`)
}

func TestRecoverLeavesUnknownOperationsAlone(t *testing.T) {
	s := openStore(t)
	e := newEngine(t, s, "h1")
	hold, began, _ := blocking("hold")
	register(e, "launch", hold)
	register(e, "teleport", hold)
	for _, kind := range []string{"launch", "teleport"} {
		start(t, e, kind, operation.Request{Target: "ve/" + kind})
		<-began
	}
	closeEngine(t, e)

	again := newEngine(t, s, "h1")
	register(again, "launch", plain("other", nil))
	if err := again.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	ops, err := again.List(t.Context())
	if err != nil || len(ops) != 2 {
		t.Fatalf("operations %v, %v", ops, err)
	}
	for _, op := range ops {
		if op.State != api.OperationRunning {
			t.Errorf("operation is %+v", op)
		}
	}
	if held, err := again.Held(t.Context()); err != nil || len(held) != 2 {
		t.Errorf("locks %v, %v", held, err)
	}
}
