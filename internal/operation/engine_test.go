package operation_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/store"
)

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
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

func newEngine(t testing.TB, s *store.Store) *operation.Engine {
	t.Helper()
	e := operation.New(s, "h1", slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return e
}

type state struct{ Made []string }

func step(name string, err error) operation.Step[state] {
	return operation.Step[state]{
		Name: name,
		Do: func(_ context.Context, r *operation.Run[state]) error {
			r.State.Made = append(r.State.Made, name)
			r.Result(r.State.Made)
			return err
		},
		Undo: func(context.Context, *operation.Run[state]) error { return nil },
	}
}

func TestDone(t *testing.T) {
	e := newEngine(t, openStore(t))
	operation.Register(e, operation.Definition[state]{Kind: "launch", Steps: []operation.Step[state]{step("a", nil), step("b", nil)}})
	op, err := operation.Start(t.Context(), e, "launch", operation.Request{Target: "ve/c1"}, state{})
	if err != nil {
		t.Fatal(err)
	}
	end, err := e.Wait(t.Context(), op.ID, nil)
	if err != nil || end.State != api.OperationDone || string(end.Result) != `["a","b"]` {
		t.Errorf("operation ended as %+v, %v", end, err)
	}
}

func TestFailureIsUndone(t *testing.T) {
	e := newEngine(t, openStore(t))
	operation.Register(e, operation.Definition[state]{Kind: "launch", Steps: []operation.Step[state]{step("a", nil), step("b", errors.New("broken"))}})
	op, err := operation.Start(t.Context(), e, "launch", operation.Request{Target: "ve/c1"}, state{})
	if err != nil {
		t.Fatal(err)
	}
	end, err := e.Wait(t.Context(), op.ID, nil)
	if err != nil || end.State != api.OperationFailed || !end.Steps[0].Undone || !end.Steps[1].Undone {
		t.Errorf("operation ended as %+v, %v", end, err)
	}
	if want := `launch ve "c1": broken`; end.Error == nil || end.Error.Detail != want {
		t.Errorf("error is %+v, want %q", end.Error, want)
	}
}
