package operation

import (
	"encoding/json"
	"time"

	"polder/api"
)

// record is an operation in the store.
type record struct {
	Kind   string             `json:"kind"`
	Target string             `json:"target"`
	Host   string             `json:"host"`
	State  api.OperationState `json:"state"`
	// Index of the step that is being done, or undone.
	Index int                 `json:"index"`
	Steps []api.OperationStep `json:"steps"`
	// NoReturn is the index of the first step that can not be undone; len(Steps): none.
	NoReturn int `json:"no_return"`
	// CancelAsked is set by whoever cancels, on any host: the only field that another than the engine writes.
	CancelAsked bool            `json:"cancel_asked,omitempty"`
	Locks       []Lock          `json:"locks,omitempty"`
	Frees       bool            `json:"frees,omitempty"`
	Data        json.RawMessage `json:"data,omitempty"` // the Run's State; dropped at the end
	Progress    *api.Progress   `json:"progress,omitempty"`
	Result      json.RawMessage `json:"result,omitempty"`
	// Cause is why it is undone or failed. Trouble is what makes a retry necessary right now.
	Cause     *api.Problem `json:"cause,omitempty"`
	Trouble   string       `json:"trouble,omitempty"`
	CreatedAt time.Time    `json:"created_at"`
	UpdatedAt time.Time    `json:"updated_at"`
}

func (r *record) cancellable() bool {
	return r.State == api.OperationRunning && r.Index < r.NoReturn && !r.CancelAsked
}

// operation is the record as the API shows it.
func (r *record) operation(id string) api.Operation {
	op := api.Operation{
		ID: id, Kind: r.Kind, Target: r.Target, Host: r.Host, State: r.State, Steps: r.Steps, Progress: r.Progress,
		Cancellable: r.cancellable(), Result: r.Result, Error: r.Cause, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
	if !r.State.Final() {
		op.Step = r.Steps[r.Index].Name
	}
	if r.Trouble != "" {
		problem := api.ProblemOf(api.Errorf(api.Internal, "%s", r.Trouble))
		if r.Cause != nil {
			*problem = *r.Cause
			problem.Detail += "; " + r.Trouble
		}
		op.Error = problem
	}
	return op
}

// clone copies what the engine changes in place.
func (r record) clone() record {
	r.Steps = append([]api.OperationStep(nil), r.Steps...)
	return r
}
