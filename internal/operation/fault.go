package operation

import "errors"

// Phase is a moment in the life of a step.
type Phase string

// The phases at which a fault can be injected.
const (
	BeforeDo   Phase = "before do"   // the record says that the step begins
	AfterDo    Phase = "after do"    // done, and the record does not know yet
	BeforeUndo Phase = "before undo" // the record says that the step is being undone
	AfterUndo  Phase = "after undo"  // undone, and the record does not know yet
)

// Point is where an operation is.
type Point struct {
	ID, Kind, Step string
	Phase          Phase
}

// ErrCrash is what a fault function returns to make the engine behave as if its process had been killed at that point.
var ErrCrash = errors.New("injected crash")

// InjectFaults is for tests: f is called at every Point of every operation, in the operation's goroutine. An error is taken
// for one of the step's own Do or Undo.
func (e *Engine) InjectFaults(f func(Point) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults = f
}

func (x *execution) fault(i int, phase Phase) error {
	x.e.mu.Lock()
	f := x.e.faults
	x.e.mu.Unlock()
	if f == nil {
		return nil
	}
	err := f(Point{ID: x.id, Kind: x.kind.name, Step: x.kind.steps[i], Phase: phase})
	if errors.Is(err, ErrCrash) {
		x.e.stop(err)
	}
	return err
}
