package api

import (
	"errors"
	"fmt"
	"net/http"
)

// Kind is the closed set of reasons why a request can fail. It decides the HTTP status, the CLI's exit code and
// whether a caller may try again; the text of an error is for people only.
type Kind string

// The kinds. A new one needs a row in kinds below.
const (
	NotFound     Kind = "not_found"    // the thing named does not exist
	Exists       Kind = "exists"       // the name is taken
	Conflict     Kind = "conflict"     // something else is being done to it, or it changed meanwhile
	Invalid      Kind = "invalid"      // the request is malformed; the same request will never work
	Precondition Kind = "precondition" // the thing is in a state that does not allow it
	Unsupported  Kind = "unsupported"  // this model, driver or host cannot do it
	Exhausted    Kind = "exhausted"    // no room: memory, disk, addresses
	Unavailable  Kind = "unavailable"  // a part that is needed does not answer; try again later
	Cancelled    Kind = "cancelled"    // somebody asked for it to stop
	Internal     Kind = "internal"     // a defect in Polder or in a tool it runs
)

// kinds is the one table from kind to HTTP status and to the CLI's exit code.
var kinds = map[Kind]struct{ status, exit int }{
	NotFound:     {http.StatusNotFound, 3},
	Exists:       {http.StatusConflict, 4},
	Conflict:     {http.StatusConflict, 4},
	Invalid:      {http.StatusBadRequest, 2},
	Precondition: {http.StatusPreconditionFailed, 4},
	Unsupported:  {http.StatusUnprocessableEntity, 1},
	Exhausted:    {http.StatusInsufficientStorage, 1},
	Unavailable:  {http.StatusServiceUnavailable, 1},
	Cancelled:    {http.StatusConflict, 5},
	Internal:     {http.StatusInternalServerError, 1},
}

// Status is the HTTP status for the kind; an unknown kind is a 500.
func (k Kind) Status() int {
	if row, ok := kinds[k]; ok {
		return row.status
	}
	return http.StatusInternalServerError
}

// ExitCode is the CLI's exit code for the kind (1 for an unknown one).
func (k Kind) ExitCode() int {
	if row, ok := kinds[k]; ok {
		return row.exit
	}
	return 1
}

// Error is the one error type that crosses package and process boundaries: a kind for programs, a text for people
// (lower case, "operation + identity: cause", and what to do where that is not obvious).
type Error struct {
	Kind Kind
	Text string
	Err  error // the cause, or nil
}

func (e *Error) Error() string { return e.Text }

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error; %w in the format keeps the cause for errors.Is and errors.As.
func Errorf(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Text: err.Error(), Err: errors.Unwrap(err)}
}

// KindOf finds the kind of an error anywhere in its chain; an error without one is Internal. KindOf(nil) is "".
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Problem is an error on the wire: RFC 9457 application/problem+json with Polder's kind as an extension.
type Problem struct {
	Type   string `json:"type,omitempty"` // "urn:polder:problem:<kind>"
	Title  string `json:"title,omitempty"`
	Status int    `json:"status,omitempty"`
	Detail string `json:"detail,omitempty"`
	Kind   Kind   `json:"kind"`
}

// ProblemOf turns an error into its wire form; nil stays nil.
func ProblemOf(err error) *Problem {
	if err == nil {
		return nil
	}
	kind := KindOf(err)
	return &Problem{
		Type:   "urn:polder:problem:" + string(kind),
		Title:  http.StatusText(kind.Status()),
		Status: kind.Status(),
		Detail: err.Error(),
		Kind:   kind,
	}
}

// Err turns a problem that came over the wire back into an Error; nil stays nil.
func (p *Problem) Err() error {
	if p == nil {
		return nil
	}
	return &Error{Kind: p.Kind, Text: p.Detail}
}
