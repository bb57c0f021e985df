package operation_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/store"
)

// world is what the steps of a made-up operation change. It outlives the engines, as disks and processes do.
type world struct {
	mu     sync.Mutex
	made   map[string]bool
	broken []string // promises that were broken
}

func (w *world) do(name string, before []string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range before {
		if !w.made[b] {
			w.broken = append(w.broken, fmt.Sprintf("%s was done without %s", name, b))
		}
	}
	w.made[name] = true
	return nil
}

func (w *world) undo(name string, after []string, noReturn bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range after {
		if w.made[a] {
			w.broken = append(w.broken, fmt.Sprintf("%s was undone before %s", name, a))
		}
	}
	if noReturn {
		w.broken = append(w.broken, fmt.Sprintf("%s was undone after the point of no return", name))
	}
	w.made[name] = false
	return nil
}

// scenario is an operation, and what happens to it: the n-th time it passes a point, faults[n] happens.
type scenario struct {
	names    []string
	noReturn int // index; len(names): none
	after    operation.Policy
	faults   []string // "", "fail", "crash", "cancel"
}

func (sc scenario) definition(w *world) operation.Definition[state] {
	d := operation.Definition[state]{Kind: "random", AfterCrash: sc.after}
	if sc.noReturn < len(sc.names) {
		d.PointOfNoReturn = sc.names[sc.noReturn]
	}
	for i, name := range sc.names {
		d.Steps = append(d.Steps, step{
			Name: name,
			Do: func(_ context.Context, r *run) error {
				if r.State.Made = append(r.State.Made[:min(i, len(r.State.Made))], name); len(r.State.Made) != i+1 {
					return fmt.Errorf("step %s got state %v", name, r.State.Made)
				}
				return w.do(name, sc.names[:i])
			},
			Undo: func(context.Context, *run) error { return w.undo(name, sc.names[i+1:], i >= sc.noReturn) },
		})
	}
	return d
}

func draw(t *rapid.T) scenario {
	n := rapid.IntRange(1, 4).Draw(t, "steps")
	sc := scenario{noReturn: rapid.IntRange(0, n).Draw(t, "point of no return")}
	for i := range n {
		sc.names = append(sc.names, string(rune('a'+i)))
	}
	sc.after = rapid.SampledFrom([]operation.Policy{operation.Resume, operation.Undo}).Draw(t, "after a crash")
	sc.faults = rapid.SliceOfN(rapid.SampledFrom([]string{"", "", "", "fail", "crash", "cancel"}), 0, 10).Draw(t, "faults")
	return sc
}

// TestAnyFaults runs random operations under random failures, cancels and crashes: each ends done with all its steps, or not
// done with none, never both, and with its locks free.
func TestAnyFaults(t *testing.T) {
	s := openStore(t)
	rapid.Check(t, func(t *rapid.T) {
		sc := draw(t)
		w := &world{made: map[string]bool{}}
		end, err := sc.play(s, w)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range w.broken {
			t.Error(b)
		}
		for i, step := range end.Steps {
			done := end.State == api.OperationDone
			if w.made[step.Name] != done || step.Undone == done && step.StartedAt != nil {
				t.Errorf("operation is %s, and step %d is %+v, made %v", end.State, i, step, w.made[step.Name])
			}
		}
		if !slices.Contains(sc.faults, "fail") && !slices.Contains(sc.faults, "cancel") && sc.after == operation.Resume && end.State != api.OperationDone {
			t.Errorf("operation is %s without a reason", end.State)
		}
	})
}

// play runs the scenario to its end, with as many engines as there are crashes.
func (sc scenario) play(s *store.Store, w *world) (end api.Operation, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	faults := sc.faults
	id := ""
	for {
		e := operation.New(s, "h1", slog.New(slog.DiscardHandler))
		operation.Register(e, sc.definition(w))
		crashed := make(chan struct{})
		e.InjectFaults(func(p operation.Point) error {
			if len(faults) == 0 {
				return nil
			}
			fault := faults[0]
			faults = faults[1:]
			switch fault {
			case "fail":
				return fmt.Errorf("injected failure")
			case "cancel":
				if err := e.Cancel(ctx, p.ID); err != nil && api.KindOf(err) != api.Precondition {
					return err
				}
			case "crash":
				close(crashed)
				return operation.ErrCrash
			}
			return nil
		})
		if id == "" {
			op, err := operation.Start(ctx, e, "random", operation.Request{Target: "ve/c1"}, state{})
			if err != nil {
				return op, err
			}
			id = op.ID
		} else if err := e.Recover(ctx); err != nil {
			return end, err
		}
		waiting, stop := context.WithCancel(ctx)
		go func() {
			<-crashed
			stop()
		}()
		end, err = e.Wait(waiting, id, nil)
		select {
		case <-crashed:
		default:
			close(crashed)
			held, heldErr := e.Held(ctx)
			if heldErr != nil || len(held) > 0 {
				err = fmt.Errorf("locks are held at the end: %v, %w", held, heldErr)
			}
		}
		if closeErr := e.Close(ctx); closeErr != nil {
			return end, closeErr
		}
		if end.State.Final() || err != nil && waiting.Err() == nil {
			return end, err
		}
		if err := ctx.Err(); err != nil {
			return end, fmt.Errorf("no end in sight: %w: %+v", err, end)
		}
	}
}
