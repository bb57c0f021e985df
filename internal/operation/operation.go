// Package operation runs durable operations: whatever takes longer than a request.
//
// An operation is a list of steps, each with an undo. Before a step starts, one write to the store says so and keeps the
// operation's state: that the step before it is done follows from it, so n steps cost n+1 writes. After a crash Recover finds
// what was in flight and repeats the step under way or takes everything back. Steps and undos are therefore idempotent, and
// an undo copes with a step that never ran or ran half.
//
//	running  --last step done-->  done
//	running  --a step fails; cancelled-->  undoing  --all undone-->  failed | cancelled
//
// An operation runs on one host: the one that it was started for. A step at or after the point of no return may name another
// one (Step.On): then the write that ends the step before it hands the operation over, and the other host's engine, which
// watches the records, takes it up. Any host can start, watch and cancel an operation of any other.
//
// From the point of no return on an operation only goes forward: a step that fails is tried again until it succeeds. An undo
// that fails is tried again in the same way; the record's error says so meanwhile, and the locks stay taken.
//
// Locks are records in the store, claimed in the same write that creates the operation and given up in the one that ends
// it: they hold for all hosts and survive crashes with nothing to rebuild.
//
// The package owns the records "operation" and "lock". It does not know what any operation does. An Engine is safe for
// concurrent use; each operation runs in a goroutine of its own, its steps one after the other.
package operation

import (
	"context"
	"log/slog"

	"polder/internal/store"
)

// Step is one step of an operation.
type Step[S any] struct {
	Name string
	// Do does the step. It is called again after a crash, so it must be idempotent. ctx ends when the operation is
	// cancelled or the daemon stops.
	Do func(ctx context.Context, r *Run[S]) error
	// Undo takes Do back, also a Do that never ran or ran half. It must be idempotent too. ctx ends after UndoTimeout, and
	// does not end when the operation is cancelled. nil: there is nothing to undo.
	Undo func(ctx context.Context, r *Run[S]) error
	// Commit, when set, gives further writes for the transaction that says that the step is done: they happen with it or not at
	// all. It is called again when the transaction did not happen because a record changed meanwhile.
	Commit func(ctx context.Context, r *Run[S]) ([]store.Op, error)
	// On, when set, names the host that does this step and what comes after it: only at or after the point of no return, since
	// undos are done where their steps were.
	On func(state *S) string
}

// Policy says what Recover does with an operation that was running when the daemon died.
type Policy int

// The policies.
const (
	Resume Policy = iota // repeat the step under way and go on
	Undo                 // take everything back, unless the point of no return was reached
)

// Definition is a kind of operation. S is what its steps tell each other; it must survive JSON.
type Definition[S any] struct {
	Kind  string
	Steps []Step[S]
	// PointOfNoReturn names the step from whose start on the operation only goes forward: retried, never undone, not
	// cancelled. "": none.
	PointOfNoReturn string
	AfterCrash      Policy
}

// Run is one operation under way, as its steps see it.
type Run[S any] struct {
	ID     string
	Target string
	// State is kept in the store from step to step: what a step wrote here is there for the next one, and for all undos,
	// after a crash too. What a step wrote that was cut off by a crash is not.
	State S

	x *execution // nil when a step is tested alone
}

// Progress publishes how far the step is, at most some five times a second: it is cheap to call often. Total 0 means not
// known. Safe for concurrent use.
func (r *Run[S]) Progress(done, total int64, unit string) {
	if r.x != nil {
		r.x.progress.report(done, total, unit)
	}
}

// Result sets what the operation answers when it is done; v must survive JSON. Safe for concurrent use.
func (r *Run[S]) Result(v any) {
	if r.x != nil {
		r.x.setResult(v)
	}
}

// Log has the operation's id, kind and target as attributes.
func (r *Run[S]) Log() *slog.Logger {
	if r.x != nil {
		return r.x.log
	}
	return slog.Default()
}

// Request says what an operation is about.
type Request struct {
	// Target is what the operation acts on, such as "ve/c1". It is an exclusive lock by itself. "": none.
	Target string
	Locks  []Lock
	// Host is whose engine runs it; "": this one's.
	Host string
	// Frees says that the operation frees space (it deletes something): it may use the room that the store keeps back for
	// that on a full disk.
	Frees bool
}

// Lock is a claim that an operation holds from its start to its end.
type Lock struct {
	Key    string `json:"key"`
	Shared bool   `json:"shared,omitempty"`
}
