package operation_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/store"
)

// trip is an operation that begins on one host and ends on another.
type trip struct {
	To   string
	Done []string // host/step
}

// tripOn registers the operation on an engine whose host is name; mark is a record that must come with the handover.
func tripOn(e *operation.Engine, name string, marks *store.Table[string], fail error) {
	do := func(step string, err error) operation.Step[trip] {
		return operation.Step[trip]{
			Name: step,
			Do: func(_ context.Context, r *operation.Run[trip]) error {
				r.State.Done = append(r.State.Done, name+"/"+step)
				r.Result(r.State.Done)
				return err
			},
		}
	}
	cross := do("cross", fail)
	cross.Commit = func(context.Context, *operation.Run[trip]) ([]store.Op, error) {
		return []store.Op{marks.OpCreate("crossed", name)}, nil
	}
	arrive := do("arrive", nil)
	arrive.On = func(s *trip) string { return s.To }
	operation.Register(e, operation.Definition[trip]{
		Kind: "trip", Steps: []operation.Step[trip]{do("pack", nil), cross, arrive, do("unpack", nil)},
		PointOfNoReturn: "arrive", AfterCrash: operation.Undo,
	})
}

type twoHosts struct {
	store  *store.Store
	marks  *store.Table[string]
	h1, h2 *operation.Engine
}

func newTwoHosts(t *testing.T, fail error) twoHosts {
	s := openStore(t)
	w := twoHosts{store: s, marks: store.NewTable[string](s, "mark", 1), h1: newEngine(t, s, "h1"), h2: newEngine(t, s, "h2")}
	tripOn(w.h1, "h1", w.marks, fail)
	tripOn(w.h2, "h2", w.marks, fail)
	return w
}

func (w twoHosts) recover(t *testing.T, engines ...*operation.Engine) {
	t.Helper()
	for _, e := range engines {
		if err := e.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func (w twoHosts) wait(t *testing.T, id string) api.Operation {
	t.Helper()
	op, err := w.h1.Wait(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return op
}

const wholeTrip = `["h1/pack","h1/cross","h2/arrive","h2/unpack"]`

func TestHandover(t *testing.T) {
	w := newTwoHosts(t, nil)
	w.recover(t, w.h1, w.h2)
	op, err := operation.Start(t.Context(), w.h1, "trip", operation.Request{Target: "ve/a"}, trip{To: "h2"})
	if err != nil {
		t.Fatal(err)
	}
	op = w.wait(t, op.ID)
	if op.State != api.OperationDone || op.Host != "h2" || string(op.Result) != wholeTrip {
		t.Fatalf("ended %s on %s with %s, want done on h2 with %s", op.State, op.Host, op.Result, wholeTrip)
	}
	if _, err := w.marks.Get(t.Context(), "crossed"); err != nil {
		t.Errorf("what comes with the handover was not written: %v", err)
	}
	if held, err := w.h1.Held(t.Context()); err != nil || len(held) > 0 {
		t.Errorf("locks %v are held after the end (%v)", held, err)
	}
}

// The other host's daemon may be away when it is handed the operation.
func TestHandoverToAHostThatIsAway(t *testing.T) {
	w := newTwoHosts(t, nil)
	w.recover(t, w.h1)
	op, err := operation.Start(t.Context(), w.h1, "trip", operation.Request{Target: "ve/a"}, trip{To: "h2"})
	if err != nil {
		t.Fatal(err)
	}
	for op.Host != "h2" {
		if op, err = w.h1.Get(t.Context(), op.ID); err != nil {
			t.Fatal(err)
		}
	}
	if op.Step != "arrive" || op.Cancellable {
		t.Errorf("handed over at step %q, cancellable %v; want arrive, past its point of no return", op.Step, op.Cancellable)
	}
	w.recover(t, w.h2)
	if op = w.wait(t, op.ID); string(op.Result) != wholeTrip {
		t.Errorf("ended with %s, want %s", op.Result, wholeTrip)
	}
}

func TestStartForAnotherHost(t *testing.T) {
	w := newTwoHosts(t, nil)
	w.recover(t, w.h1, w.h2)
	op, err := operation.Start(t.Context(), w.h2, "trip", operation.Request{Target: "ve/a", Host: "h1"}, trip{To: "h2"})
	if err != nil {
		t.Fatal(err)
	}
	if op = w.wait(t, op.ID); op.State != api.OperationDone || string(op.Result) != wholeTrip {
		t.Errorf("ended %s with %s (%v), want %s", op.State, op.Result, op.Error.Err(), wholeTrip)
	}
}

// A step that fails before the handover is undone where it ran, and nothing of the handover is written.
func TestFailureBeforeHandover(t *testing.T) {
	w := newTwoHosts(t, errors.New("bridge is out"))
	w.recover(t, w.h1, w.h2)
	op, err := operation.Start(t.Context(), w.h1, "trip", operation.Request{Target: "ve/a"}, trip{To: "h2"})
	if err != nil {
		t.Fatal(err)
	}
	if op = w.wait(t, op.ID); op.State != api.OperationFailed || op.Host != "h1" {
		t.Errorf("ended %s on %s, want failed on h1", op.State, op.Host)
	}
	if _, err := w.marks.Get(t.Context(), "crossed"); api.KindOf(err) != api.NotFound {
		t.Errorf("the handover's record: %v, want none", err)
	}
}

// A crash right after the step, before its end is written, takes everything back; the other host never sees it.
func TestCrashBeforeHandover(t *testing.T) {
	w := newTwoHosts(t, nil)
	crashed := make(chan struct{})
	w.h1.InjectFaults(func(p operation.Point) error {
		if p.Step == "cross" && p.Phase == operation.AfterDo {
			close(crashed)
			return operation.ErrCrash
		}
		return nil
	})
	w.recover(t, w.h1, w.h2)
	op, err := operation.Start(t.Context(), w.h1, "trip", operation.Request{Target: "ve/a"}, trip{To: "h2"})
	if err != nil {
		t.Fatal(err)
	}
	<-crashed
	closeEngine(t, w.h1)
	again := newEngine(t, w.store, "h1")
	tripOn(again, "h1", w.marks, nil)
	if err := again.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	op, err = again.Wait(t.Context(), op.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	undone := slices.IndexFunc(op.Steps, func(s api.OperationStep) bool { return !s.Undone })
	if op.State != api.OperationFailed || undone != 2 {
		t.Errorf("ended %s, undone up to step %d; want failed, and the first two undone", op.State, undone)
	}
}

// A handover whose record needs one that keeps changing gets through, and one that never can does not hang.
func TestHandoverThatCannotBeWritten(t *testing.T) {
	w := newTwoHosts(t, nil)
	w.recover(t, w.h1, w.h2)
	if _, err := w.marks.Create(t.Context(), "crossed", "another"); err != nil {
		t.Fatal(err)
	}
	op, err := operation.Start(t.Context(), w.h1, "trip", operation.Request{Target: "ve/a"}, trip{To: "h2"})
	if err != nil {
		t.Fatal(err)
	}
	if op = w.wait(t, op.ID); op.State != api.OperationFailed || op.Host != "h1" {
		t.Errorf("ended %s on %s, want failed on h1", op.State, op.Host)
	}
}

func TestHostsChangeOnlyPastTheReturn(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	defer func() {
		if recover() == nil {
			t.Error("a definition that changes hosts while it can still be undone was taken")
		}
	}()
	operation.Register(e, operation.Definition[trip]{Kind: "bad", Steps: []operation.Step[trip]{{
		Name: "away", Do: func(context.Context, *operation.Run[trip]) error { return nil }, On: func(*trip) string { return "h2" },
	}}})
}

// A caller that goes away while it starts an operation leaves none behind that nobody runs.
func TestStartOfACallerWhoLeaves(t *testing.T) {
	w := newTwoHosts(t, nil)
	w.recover(t, w.h1, w.h2)
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if op, err := operation.Start(ctx, w.h1, "trip", operation.Request{}, trip{To: "h2"}); err == nil {
			_ = w.wait(t, op.ID)
		}
		if err := w.marks.Delete(t.Context(), "crossed"); err != nil && api.KindOf(err) != api.NotFound {
			t.Fatal(err)
		}
	}
	ops, err := w.h1.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range ops {
		if op = w.wait(t, op.ID); !op.State.Final() {
			t.Errorf("operation %s is %s", op.ID, op.State)
		}
	}
}
