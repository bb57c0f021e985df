package operation_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/store"
)

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newEngine makes an engine that the test need not close.
func newEngine(t testing.TB, s *store.Store, host string) *operation.Engine {
	e := operation.New(s, host, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { closeEngine(t, e) })
	return e
}

func closeEngine(t testing.TB, e *operation.Engine) {
	t.Helper()
	if err := e.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

type state struct{ Made []string }

type (
	step = operation.Step[state]
	run  = operation.Run[state]
)

// plain is a step that works, or returns an error.
func plain(name string, err error) step {
	return step{
		Name: name,
		Do: func(_ context.Context, r *run) error {
			r.State.Made = append(r.State.Made, name)
			r.Result(r.State.Made)
			return err
		},
	}
}

// blocking is a step that says when it began, and lasts until it is released or its context ends.
func blocking(name string) (s step, began, release chan struct{}) {
	began, release = make(chan struct{}, 10), make(chan struct{})
	return step{Name: name, Do: func(ctx context.Context, _ *run) error {
		began <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}, began, release
}

func register(e *operation.Engine, kind string, steps ...step) {
	operation.Register(e, operation.Definition[state]{Kind: kind, Steps: steps})
}

func start(t testing.TB, e *operation.Engine, kind string, req operation.Request) api.Operation {
	t.Helper()
	op, err := operation.Start(t.Context(), e, kind, req, state{})
	if err != nil {
		t.Fatal(err)
	}
	return op
}

func wait(t testing.TB, e *operation.Engine, id string) api.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	op, err := e.Wait(ctx, id, nil)
	if err != nil {
		t.Fatalf("%v; operation is %+v", err, op)
	}
	return op
}

func wantEnd(t testing.TB, op api.Operation, want api.OperationState, detail string) {
	t.Helper()
	got := ""
	if op.Error != nil {
		got = op.Error.Detail
	}
	if op.State != want || got != detail {
		t.Errorf("operation is %s with error %q, want %s with %q", op.State, got, want, detail)
	}
}

func wantKind(t testing.TB, err error, want api.Kind) {
	t.Helper()
	if api.KindOf(err) != want {
		t.Errorf("error %v has kind %q, want %q", err, api.KindOf(err), want)
	}
}

func wantFree(t testing.TB, e *operation.Engine) {
	t.Helper()
	if held, err := e.Held(context.Background()); err != nil || len(held) > 0 {
		t.Errorf("locks are held: %v, %v", held, err)
	}
}

func TestDone(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	register(e, "launch", plain("a", nil), plain("b", nil))
	op := start(t, e, "launch", operation.Request{Target: "ve/c1"})
	if op.State != api.OperationRunning || op.Step != "a" || !op.Cancellable || op.Host != "h1" || op.Target != "ve/c1" {
		t.Errorf("operation began as %+v", op)
	}
	end := wait(t, e, op.ID)
	wantEnd(t, end, api.OperationDone, "")
	if string(end.Result) != `["a","b"]` || end.Cancellable || end.Step != "" {
		t.Errorf("operation ended as %+v", end)
	}
	for _, step := range end.Steps {
		if step.StartedAt == nil || step.FinishedAt == nil || step.FinishedAt.Before(*step.StartedAt) {
			t.Errorf("step is %+v", step)
		}
	}
	wantFree(t, e)
}

// TestOneWritePerBoundary is what makes a launch fast: n steps, n+1 writes.
func TestOneWritePerBoundary(t *testing.T) {
	s := openStore(t)
	e := newEngine(t, s, "h1")
	register(e, "launch", plain("a", nil), plain("b", nil), plain("c", nil))
	before, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wait(t, e, start(t, e, "launch", operation.Request{Target: "ve/c1", Locks: []operation.Lock{{Key: "image/x", Shared: true}}}).ID)
	after, err := s.Revision(t.Context())
	if err != nil || after-before != 4 {
		t.Errorf("3 steps took %d writes, %v", after-before, err)
	}
}

func TestFailureIsUndoneInReverse(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	var undone []string
	var steps []step
	for _, name := range []string{"a", "b", "c"} {
		s := plain(name, nil)
		if name == "b" {
			s = plain(name, api.Errorf(api.Exhausted, "no room"))
		}
		s.Undo = func(_ context.Context, r *run) error {
			undone = append(undone, fmt.Sprint(name, r.State.Made))
			return nil
		}
		steps = append(steps, s)
	}
	register(e, "launch", steps...)
	end := wait(t, e, start(t, e, "launch", operation.Request{Target: "ve/c1"}).ID)
	wantEnd(t, end, api.OperationFailed, `launch ve "c1": no room`)
	if got := strings.Join(undone, " "); got != "b[a b] a[a b]" {
		t.Errorf("undone: %s", got)
	}
	if end.Error.Kind != api.Exhausted || !end.Steps[0].Undone || !end.Steps[1].Undone || end.Steps[2].Undone {
		t.Errorf("operation ended as %+v", end)
	}
	wantFree(t, e)
}

func TestPanicIsAFailure(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	register(e, "launch", step{Name: "a", Do: func(context.Context, *run) error { panic("oh") }})
	end := wait(t, e, start(t, e, "launch", operation.Request{}).ID)
	wantEnd(t, end, api.OperationFailed, `launch: step "a" panicked: oh`)
}

func TestLocks(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	hold, began, release := blocking("hold")
	register(e, "hold", hold)
	register(e, "delete", plain("a", nil))
	shared := operation.Request{Target: "ve/c1", Locks: []operation.Lock{{Key: "image/a/b", Shared: true}}}
	first := start(t, e, "hold", shared)
	<-began
	other := shared
	other.Target = "ve/c2"
	second := start(t, e, "hold", other)
	<-began

	for name, test := range map[string]struct {
		req  operation.Request
		want string // "": free
	}{
		"target":                {operation.Request{Target: "ve/c1"}, fmt.Sprintf(`ve "c1" is busy: operation %[1]s (hold) is running; wait with: polder op watch %[1]s`, first.ID)},
		"target shared":         {operation.Request{Locks: []operation.Lock{{Key: "ve/c2", Shared: true}}}, fmt.Sprintf(`ve "c2" is busy: operation %[1]s (hold) is running; wait with: polder op watch %[1]s`, second.ID)},
		"shared by two":         {operation.Request{Target: "image/a/b"}, `image "a/b" is busy: operation `},
		"shared":                {operation.Request{Locks: []operation.Lock{{Key: "image/a/b", Shared: true}}}, ""},
		"key that begins alike": {operation.Request{Target: "image/a"}, ""},
		"key that goes on":      {operation.Request{Target: "image/a/b/c"}, ""},
		"none":                  {operation.Request{}, ""},
		"the same twice":        {operation.Request{Target: "ve/c3", Locks: []operation.Lock{{Key: "ve/c3", Shared: true}, {Key: "ve/c3"}}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			op, err := operation.Start(t.Context(), e, "delete", test.req, state{})
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				wait(t, e, op.ID)
				return
			}
			wantKind(t, err, api.Conflict)
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
	close(release)
	wait(t, e, first.ID)
	wait(t, e, second.ID)
	wantFree(t, e)
	wait(t, e, start(t, e, "delete", operation.Request{Target: "image/a/b"}).ID)
}

func TestOneOfManyGetsTheLock(t *testing.T) {
	s := openStore(t)
	engines := []*operation.Engine{newEngine(t, s, "h1"), newEngine(t, s, "h2")}
	hold, _, release := blocking("hold")
	for _, e := range engines {
		register(e, "hold", hold)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var got []string
	for i := range 8 {
		wg.Go(func() {
			op, err := operation.Start(t.Context(), engines[i%2], "hold", operation.Request{Target: "ve/c1"}, state{})
			if err != nil {
				wantKind(t, err, api.Conflict)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			got = append(got, op.ID)
		})
	}
	wg.Wait()
	if len(got) != 1 {
		t.Fatalf("operations %v hold one lock", got)
	}
	close(release)
	wait(t, engines[0], got[0])
}

func TestStartAfterCloseIsRefused(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	register(e, "launch", plain("a", nil))
	closeEngine(t, e)
	_, err := operation.Start(t.Context(), e, "launch", operation.Request{}, state{})
	wantKind(t, err, api.Unavailable)
}

func TestUndoThatFailsIsTriedAgain(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	repaired := make(chan struct{})
	s := plain("a", errors.New("broken"))
	s.Undo = func(context.Context, *run) error {
		select {
		case <-repaired:
			return nil
		default:
			return errors.New("stuck")
		}
	}
	register(e, "launch", s)
	op := start(t, e, "launch", operation.Request{Target: "ve/c1"})
	var once sync.Once
	end, err := e.Wait(t.Context(), op.ID, func(op api.Operation) {
		if op.State == api.OperationUndoing && op.Error != nil && strings.Contains(op.Error.Detail, "tr") && strings.HasSuffix(op.Error.Detail, "stuck") {
			want := `launch ve "c1": broken; undoing step "a" failed 6 times, trying again: stuck`
			if op.Error.Detail != want {
				t.Errorf("trouble is %q, want %q", op.Error.Detail, want)
			}
			once.Do(func() { close(repaired) })
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	wantEnd(t, end, api.OperationFailed, `launch ve "c1": broken`)
	wantFree(t, e)
}

func TestProgressIsThrottled(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	seen := make(chan struct{})
	register(e, "copy", step{Name: "a", Do: func(ctx context.Context, r *run) error {
		for i := range int64(1 << 40) {
			r.Progress(i, 1<<40, "bytes")
			select {
			case <-seen:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			default:
			}
		}
		return nil
	}})
	op := start(t, e, "copy", operation.Request{})
	var reports []api.Operation
	end, err := e.Wait(t.Context(), op.ID, func(op api.Operation) {
		if op.Progress == nil {
			return
		}
		if reports = append(reports, op); len(reports) == 2 {
			close(seen)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if end.Progress != nil || len(reports) > 3 {
		t.Errorf("%d reports; at the end %+v", len(reports), end.Progress)
	}
	if apart := reports[1].UpdatedAt.Sub(reports[0].UpdatedAt); apart < 150*time.Millisecond {
		t.Errorf("progress was written twice within %v", apart)
	}
}

func TestPrune(t *testing.T) {
	e := newEngine(t, openStore(t), "h1")
	hold, began, _ := blocking("hold")
	register(e, "hold", hold)
	register(e, "launch", plain("a", nil))
	running := start(t, e, "hold", operation.Request{Target: "ve/c1"})
	<-began
	ended := start(t, e, "launch", operation.Request{})
	wait(t, e, ended.ID)
	for _, test := range []struct {
		after time.Duration
		want  string
	}{
		{time.Hour, ended.ID + " " + running.ID},
		{25 * time.Hour, running.ID},
	} {
		if err := operation.Prune(e, t.Context(), time.Now().Add(test.after)); err != nil {
			t.Fatal(err)
		}
		ops, err := e.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, op := range ops {
			ids = append(ids, op.ID)
		}
		if got := strings.Join(ids, " "); got != test.want {
			t.Errorf("after %v there are %s, want %s", test.after, got, test.want)
		}
	}
	_, err := e.Get(t.Context(), ended.ID)
	wantKind(t, err, api.NotFound)
}

func TestNothingLeaks(t *testing.T) {
	s := openStore(t)
	newEngine(t, s, "h2") // all watches share a stream, which the first one opens
	leaks := goleak.IgnoreCurrent()
	e := operation.New(s, "h1", slog.New(slog.DiscardHandler))
	register(e, "launch", plain("a", nil))
	ctx, cancel := context.WithCancel(t.Context())
	changes := e.Watch(ctx, 0)
	op := start(t, e, "launch", operation.Request{})
	wait(t, e, op.ID)
	for c := range changes {
		if c.Operation.ID == op.ID && c.Operation.State.Final() {
			break
		}
	}
	cancel()
	for range changes {
		t.Error("a change after the end of its context")
	}
	closeEngine(t, e)
	goleak.VerifyNone(t, leaks)
}
