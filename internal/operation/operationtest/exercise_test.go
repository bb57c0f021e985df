package operationtest_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/operation/operationtest"
	"polder/internal/store"
)

// things is what an operation makes in the world.
type things struct {
	mu   sync.Mutex
	made []string
}

func (w *things) add(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.made, name) {
		w.made = append(w.made, name)
	}
}

func (w *things) remove(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made = slices.DeleteFunc(w.made, func(s string) bool { return s == name })
}

type state struct{ Name string }

func definition(w *things, noReturn string, after operation.Policy) operation.Definition[state] {
	d := operation.Definition[state]{Kind: "build", PointOfNoReturn: noReturn, AfterCrash: after}
	for _, name := range []string{"claim", "copy", "publish", "tidy"} {
		d.Steps = append(d.Steps, operation.Step[state]{
			Name: name,
			Do: func(_ context.Context, r *operation.Run[state]) error {
				r.Progress(1, 2, "items")
				w.add(r.State.Name + name)
				return nil
			},
			Undo: func(_ context.Context, r *operation.Run[state]) error {
				w.remove(r.State.Name + name)
				return nil
			},
		})
	}
	return d
}

func TestExercise(t *testing.T) {
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for name, test := range map[string]struct {
		noReturn string
		after    operation.Policy
	}{
		"resume":             {"", operation.Resume},
		"undo":               {"", operation.Undo},
		"no return":          {"publish", operation.Resume},
		"undo and no return": {"publish", operation.Undo},
		"never undone":       {"claim", operation.Resume},
	} {
		t.Run(name, func(t *testing.T) {
			operationtest.Exercise(t, operationtest.Harness{New: func(testing.TB) operationtest.World {
				return world(s, test.noReturn, test.after)
			}})
		})
	}
}

func world(s *store.Store, noReturn string, after operation.Policy) operationtest.World {
	w := &things{}
	return operationtest.World{
		Boot: func(testing.TB) *operation.Engine {
			e := operation.New(s, "h1", slog.New(slog.DiscardHandler))
			operation.Register(e, definition(w, noReturn, after))
			return e
		},
		Start: func(ctx context.Context, e *operation.Engine) (api.Operation, error) {
			locks := []operation.Lock{{Key: "pool/fast", Shared: true}, {Key: "image/new"}}
			return operation.Start(ctx, e, "build", operation.Request{Target: "ve/c1", Locks: locks}, state{Name: "x-"})
		},
		Check: func(t testing.TB, o operationtest.Outcome) {
			want := 0
			if o.Operation.State == api.OperationDone {
				want = 4
			}
			if len(w.made) != want {
				t.Errorf("%+v: operation is %s and left %v", o.Case, o.Operation.State, w.made)
			}
		},
	}
}
