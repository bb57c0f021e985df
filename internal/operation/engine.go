package operation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"polder/api"
	"polder/internal/store"
)

// Engine runs the operations of one host.
type Engine struct {
	store      *store.Store
	operations *store.Table[record]
	locks      *store.Table[holder]
	host       string
	log        *slog.Logger

	ctx  context.Context // done when the engine is closed: its cause says how
	stop context.CancelCauseFunc
	wg   sync.WaitGroup
	ends chan struct{} // one message for each operation that ends; lossy

	mu      sync.Mutex // guards what follows
	kinds   map[string]*kind
	running map[string]*execution
	taking  bool // Recover was called: operations that others start for this host, or hand over, are taken up
	faults  func(Point) error
}

var errClosed = errors.New("engine is closed")

// New makes an engine for the operations of host. It runs nothing before Recover or Start.
func New(s *store.Store, host string, log *slog.Logger) *Engine {
	e := &Engine{
		store:      s,
		operations: store.NewTable[record](s, "operation", 1),
		locks:      store.NewTable[holder](s, "lock", 1),
		host:       host,
		log:        log,
		ends:       make(chan struct{}, 1),
		kinds:      map[string]*kind{},
		running:    map[string]*execution{},
	}
	e.ctx, e.stop = context.WithCancelCause(context.Background())
	changes := e.operations.Watch(e.ctx, 0)
	e.wg.Go(func() { e.heed(changes) })
	e.wg.Go(e.pruneNowAndThen)
	return e
}

// Close stops the engine: the contexts of all steps under way end, and what does not finish is left in the store as it
// is, for the next Recover. It blocks until no step runs any more or ctx is done.
func (e *Engine) Close(ctx context.Context) error {
	e.stop(errClosed)
	e.mu.Lock()   // whoever began an execution before is counted now; nobody begins one any more
	e.mu.Unlock() //nolint:staticcheck // an empty critical section is a barrier
	ended := make(chan struct{})
	go func() {
		e.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return api.Errorf(api.Unavailable, "close operation engine: a step does not end: %w", context.Cause(ctx))
	}
}

// kind is a Definition without its type.
type kind struct {
	name     string
	steps    []string
	noReturn int // index of the first step that can not be undone; len(steps): none
	after    Policy
	bind     func(x *execution, state json.RawMessage) (steps, error)
}

// steps is a Run with its Definition, without their type. One call at a time.
type steps interface {
	do(ctx context.Context, i int) error
	commit(ctx context.Context, i int) ([]store.Op, error)
	on(i int) string // "": where it runs
	undo(ctx context.Context, i int) error
	state() (json.RawMessage, error)
}

// Register makes a kind of operation known. It must be called before Recover and Start, and panics on a definition that
// makes no sense.
func Register[S any](e *Engine, d Definition[S]) {
	k := &kind{name: d.Kind, noReturn: len(d.Steps), after: d.AfterCrash}
	for i, step := range d.Steps {
		k.steps = append(k.steps, step.Name)
		if step.Name == d.PointOfNoReturn {
			k.noReturn = i
		}
	}
	k.bind = func(x *execution, state json.RawMessage) (steps, error) {
		b := &bound[S]{steps: d.Steps, run: Run[S]{ID: x.id, Target: x.target, x: x}}
		if err := json.Unmarshal(state, &b.run.State); err != nil {
			return nil, api.Errorf(api.Internal, "operation %s (%s): read its state: %w", x.id, d.Kind, err)
		}
		return b, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.kinds[d.Kind] != nil || d.Kind == "":
		panic(fmt.Sprintf("operation: kind %q is registered twice, or has no name", d.Kind))
	case len(d.Steps) == 0:
		panic(fmt.Sprintf("operation: kind %q has no steps", d.Kind))
	case d.PointOfNoReturn != "" && k.noReturn == len(d.Steps):
		panic(fmt.Sprintf("operation: kind %q has no step %q", d.Kind, d.PointOfNoReturn))
	case slices.ContainsFunc(d.Steps[:k.noReturn], func(s Step[S]) bool { return s.On != nil }):
		panic(fmt.Sprintf("operation: kind %q changes hosts before its point of no return", d.Kind))
	}
	e.kinds[d.Kind] = k
}

type bound[S any] struct {
	steps []Step[S]
	run   Run[S]
}

func (b *bound[S]) do(ctx context.Context, i int) error { return b.steps[i].Do(ctx, &b.run) }

func (b *bound[S]) commit(ctx context.Context, i int) ([]store.Op, error) {
	if b.steps[i].Commit == nil {
		return nil, nil
	}
	return b.steps[i].Commit(ctx, &b.run)
}

func (b *bound[S]) on(i int) string {
	if b.steps[i].On == nil {
		return ""
	}
	return b.steps[i].On(&b.run.State)
}

func (b *bound[S]) undo(ctx context.Context, i int) error {
	if b.steps[i].Undo == nil {
		return nil
	}
	return b.steps[i].Undo(ctx, &b.run)
}

func (b *bound[S]) state() (json.RawMessage, error) { return json.Marshal(b.run.State) }

// sleep waits for d; false when the engine or the store stops before.
func (e *Engine) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-e.ctx.Done():
	case <-e.store.Failed():
	}
	return false
}

// backoff is how long to wait after the n-th failure in a row (from 0).
func backoff(n int) time.Duration {
	return min(20*time.Millisecond<<min(n, 20), 30*time.Second)
}
