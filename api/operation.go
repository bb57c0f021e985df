package api

import (
	"encoding/json"
	"time"
)

// OperationState is where an operation is.
type OperationState string

// The operation states. Done, OperationFailed and OperationCancelled are final.
const (
	OperationRunning   OperationState = "running"
	OperationUndoing   OperationState = "undoing" // it failed or was cancelled, and takes back what it did
	OperationDone      OperationState = "done"
	OperationFailed    OperationState = "failed"
	OperationCancelled OperationState = "cancelled"
)

// Final says whether nothing more will happen.
func (s OperationState) Final() bool {
	return s == OperationDone || s == OperationFailed || s == OperationCancelled
}

// Progress of the step under way. Total 0 means not known.
type Progress struct {
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
	Unit  string `json:"unit" enum:"bytes,items,steps"`
}

// OperationStep is one step of an operation.
type OperationStep struct {
	Name       string     `json:"name"`
	StartedAt  *time.Time `json:"started_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
	Undone     bool       `json:"undone,omitempty"`
}

// Operation is anything that takes longer than a request: it is kept in the store, can be watched and cancelled, and is
// undone when it fails.
type Operation struct {
	ID          string          `json:"id"`
	Kind        string          `json:"kind" example:"launch"`
	Target      string          `json:"target" example:"ve/c1"`
	Host        string          `json:"host" doc:"where it runs"`
	State       OperationState  `json:"state" enum:"running,undoing,done,failed,cancelled"`
	Steps       []OperationStep `json:"steps"`
	Step        string          `json:"step,omitempty" doc:"the step under way"`
	Progress    *Progress       `json:"progress,omitempty"`
	Cancellable bool            `json:"cancellable" doc:"false from the point of no return on"`
	Result      json.RawMessage `json:"result,omitempty"`
	Error       *Problem        `json:"error,omitempty"`
	CreatedAt   time.Time       `json:"created_at"`
	UpdatedAt   time.Time       `json:"updated_at"`
}

// Event is one change in the cluster. ID is the store's revision: a reader that gives the last one it saw
// (Last-Event-ID) continues from there.
type Event struct {
	ID      int64             `json:"id"`
	Time    time.Time         `json:"time"`
	Kind    string            `json:"kind" example:"ve.state"`
	Subject string            `json:"subject" example:"ve/c1"`
	Text    string            `json:"text"`
	Fields  map[string]string `json:"fields,omitempty"`
}
