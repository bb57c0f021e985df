// Package operationtest runs an operation with a failure, a cancel and a crash injected at every step.
//
// It owns the injection and checks what every operation promises: that it ends, in the right state, with its locks free.
// What the operation itself must leave or not leave behind, the caller's Check looks for. It works on real operations as
// well as on fakes; cases run one after the other.
package operationtest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"polder/api"
	"polder/internal/operation"
)

// World is one fresh system to run an operation in.
type World struct {
	// Boot makes an engine on the world's store with everything registered, as the daemon does when it starts, up to but
	// without Recover. It is called again after a crash. What else it makes is its own to clean up (t.Cleanup).
	Boot func(t testing.TB) *operation.Engine
	// Start starts the operation.
	Start func(ctx context.Context, e *operation.Engine) (api.Operation, error)
	// Crash (may be nil) drops what else the daemon had in memory when it died. The engine has stopped by then.
	Crash func(t testing.TB)
	// Check looks at what is there after the operation has ended.
	Check func(t testing.TB, o Outcome)
}

// Harness makes worlds.
type Harness struct {
	// New makes a world for one case.
	New func(t testing.TB) World
	// Timeout of one case; 0: a minute.
	Timeout time.Duration
}

// Outcome says what was done to the operation and how it ended.
type Outcome struct {
	Case      Case
	Operation api.Operation // final
}

// Case is one injection.
type Case struct {
	Step string
	What Injection
}

// Injection is a thing that is done to an operation, once, at Case.Step.
type Injection string

// The injections. Those at an undo come after a failure of the last step that can be undone.
const (
	Nothing         Injection = "nothing"
	FailBeforeDo    Injection = "fail before do"
	FailAfterDo     Injection = "fail after do"
	CancelBeforeDo  Injection = "cancel before do"
	CancelAfterDo   Injection = "cancel after do"
	CrashBeforeDo   Injection = "crash before do"
	CrashAfterDo    Injection = "crash after do"
	FailUndo        Injection = "fail undo"
	CrashBeforeUndo Injection = "crash before undo"
	CrashAfterUndo  Injection = "crash after undo"
)

var phases = map[Injection]operation.Phase{
	FailBeforeDo: operation.BeforeDo, FailAfterDo: operation.AfterDo,
	CancelBeforeDo: operation.BeforeDo, CancelAfterDo: operation.AfterDo,
	CrashBeforeDo: operation.BeforeDo, CrashAfterDo: operation.AfterDo,
	FailUndo: operation.BeforeUndo, CrashBeforeUndo: operation.BeforeUndo, CrashAfterUndo: operation.AfterUndo,
}

// Exercise runs the operation undisturbed first, and then every case in a world of its own, as subtests.
func Exercise(t *testing.T, h Harness) {
	t.Helper()
	if h.Timeout == 0 {
		h.Timeout = time.Minute
	}
	plain := h.run(t, plan{}, Case{What: Nothing})
	if t.Failed() {
		return
	}
	p := plan{kind: plain.Operation.Kind, undoable: undoable(plain)}
	for _, c := range p.cases(plain.Operation) {
		t.Run(fmt.Sprintf("%s/%s", c.Step, c.What), func(t *testing.T) { h.run(t, p, c) })
	}
}

// outcome is an Outcome with the steps at whose start the operation could still be cancelled.
type outcome struct {
	Outcome
	cancellable []string
}

func undoable(o outcome) map[string]bool {
	steps := map[string]bool{}
	for _, step := range o.cancellable {
		steps[step] = true
	}
	return steps
}

// plan is what the undisturbed run told.
type plan struct {
	kind     string
	undoable map[string]bool // steps before the point of no return
}

func (p plan) cases(op api.Operation) (cases []Case) {
	for _, step := range op.Steps {
		whats := []Injection{FailBeforeDo, FailAfterDo, CancelBeforeDo, CancelAfterDo, CrashBeforeDo, CrashAfterDo}
		if p.undoable[step.Name] {
			whats = append(whats, FailUndo, CrashBeforeUndo, CrashAfterUndo)
		}
		for _, what := range whats {
			cases = append(cases, Case{Step: step.Name, What: what})
		}
	}
	return cases
}

// last is the last step that can be undone.
func (p plan) last(op api.Operation) (name string) {
	for _, step := range op.Steps {
		if p.undoable[step.Name] {
			name = step.Name
		}
	}
	return name
}

func (h Harness) run(t *testing.T, p plan, c Case) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), h.Timeout)
	defer cancel()
	w := h.New(t)
	e := w.Boot(t)
	defer func() { closeEngine(t, e) }()
	in := &injector{plan: p, c: c, engine: e, crashed: make(chan struct{})}
	e.InjectFaults(in.at)
	op, err := w.Start(ctx, e)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	select {
	case <-ended(ctx, e, op.ID):
	case <-in.crashed:
		closeEngine(t, e)
		if w.Crash != nil {
			w.Crash(t)
		}
		e = w.Boot(t)
		if err := e.Recover(ctx); err != nil {
			t.Fatalf("recover: %v", err)
		}
	}
	end, err := e.Wait(ctx, op.ID, nil)
	if err != nil {
		t.Fatalf("wait for the end (state %s, step %s, error %+v): %v", end.State, end.Step, end.Error, err)
	}
	o := outcome{Outcome{c, end}, in.cancellable}
	in.check(t, end)
	if held, err := e.Held(ctx); err != nil || len(held) > 0 {
		t.Errorf("locks are still held: %v, %v", held, err)
	}
	w.Check(t, o.Outcome)
	return o
}

// ended is closed when the operation has ended, or ctx is done.
func ended(ctx context.Context, e *operation.Engine, id string) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		_, _ = e.Wait(ctx, id, nil) // the caller looks again
	}()
	return c
}

func closeEngine(t testing.TB, e *operation.Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Error(err)
	}
}

// injector does one case to the first operation of the kind that it meets.
type injector struct {
	plan    plan
	c       Case
	engine  *operation.Engine
	crashed chan struct{}

	mu          sync.Mutex // guards what follows
	id          string
	done        bool  // the injection has happened
	failed      bool  // the failure that leads to an undo has happened
	cancelErr   error // what Cancel said
	cancellable []string
}

func (in *injector) at(p operation.Point) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.id == "" && (in.plan.kind == "" || in.plan.kind == p.Kind) {
		in.id = p.ID
	}
	if p.ID != in.id {
		return nil
	}
	if in.c.What == Nothing {
		return in.observe(p)
	}
	if err := in.leadIn(p); err != nil {
		return err
	}
	if in.done || p.Step != in.c.Step || p.Phase != phases[in.c.What] {
		return nil
	}
	in.done = true
	switch in.c.What {
	case CancelBeforeDo, CancelAfterDo:
		in.cancelErr = in.engine.Cancel(context.Background(), p.ID)
		return nil
	case CrashBeforeDo, CrashAfterDo, CrashBeforeUndo, CrashAfterUndo:
		close(in.crashed)
		return operation.ErrCrash
	default:
		return api.Errorf(api.Unavailable, "injected: %s of step %q", in.c.What, p.Step)
	}
}

// observe learns from the undisturbed run.
func (in *injector) observe(p operation.Point) error {
	if p.Phase != operation.BeforeDo {
		return nil
	}
	op, err := in.engine.Get(context.Background(), p.ID)
	if err == nil && op.Cancellable {
		in.cancellable = append(in.cancellable, p.Step)
	}
	return err
}

// leadIn makes the operation fail when the case is about its undo.
func (in *injector) leadIn(p operation.Point) error {
	switch in.c.What {
	case FailUndo, CrashBeforeUndo, CrashAfterUndo:
	default:
		return nil
	}
	if in.failed || p.Phase != operation.AfterDo {
		return nil
	}
	op, err := in.engine.Get(context.Background(), p.ID)
	if err != nil || p.Step != in.plan.last(op) {
		return err
	}
	in.failed = true
	return api.Errorf(api.Unavailable, "injected: failure of step %q", p.Step)
}

// check compares the operation's end with what the case must lead to.
func (in *injector) check(t testing.TB, end api.Operation) {
	t.Helper()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.c.What != Nothing && !in.done {
		t.Errorf("the operation never came to step %q, %s", in.c.Step, phases[in.c.What])
	}
	if !in.allowed(end.State) {
		t.Errorf("the operation ended as %s: %+v", end.State, end.Error)
	}
	for _, step := range end.Steps {
		if end.State == api.OperationDone && step.Undone {
			t.Errorf("the operation is done, and step %q undone", step.Name)
		}
		if end.State != api.OperationDone && step.StartedAt != nil && !step.Undone {
			t.Errorf("the operation ended as %s, and step %q is not undone", end.State, step.Name)
		}
	}
	if (end.State == api.OperationDone) != (end.Error == nil) {
		t.Errorf("the operation ended as %s with error %+v", end.State, end.Error)
	}
}

func (in *injector) allowed(s api.OperationState) bool {
	undoable := in.plan.undoable[in.c.Step]
	switch in.c.What {
	case FailBeforeDo, FailAfterDo:
		return undoable == (s == api.OperationFailed) && (undoable || s == api.OperationDone)
	case CancelBeforeDo, CancelAfterDo:
		if undoable {
			return s == api.OperationCancelled && in.cancelErr == nil
		}
		return s == api.OperationDone && api.KindOf(in.cancelErr) == api.Precondition
	case CrashBeforeDo, CrashAfterDo: // by the operation's own policy
		return s == api.OperationDone || undoable && s == api.OperationFailed
	case FailUndo, CrashBeforeUndo, CrashAfterUndo:
		return s == api.OperationFailed
	default:
		return s == api.OperationDone
	}
}
