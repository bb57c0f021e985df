package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

// Problem is api.Problem as huma wants an error.
type Problem api.Problem

func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// failure gives an error the form that huma writes out; nil stays nil.
func failure(err error) error {
	if err == nil {
		return nil
	}
	return (*Problem)(api.ProblemOf(err))
}

// writeProblem answers a request outside huma with an error.
func writeProblem(w http.ResponseWriter, err error) {
	p := api.ProblemOf(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p) //nolint:errcheck // the client went away: nobody left to tell
}

// useProblems makes huma's own errors (malformed JSON, unknown fields) problems with a kind as well. The hook is a
// package variable of huma's, the same for every Server, so it is set once.
var useProblems = sync.OnceFunc(func() {
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		return (*Problem)(api.ProblemOf(requestError(status, message, errs)))
	}
})

func requestError(status int, message string, errs []error) error {
	kind := api.Invalid
	if status >= http.StatusInternalServerError {
		kind = api.Internal
	}
	var known *api.Error
	parts := []string{message}
	for _, err := range errs {
		if errors.As(err, &known) {
			return known
		}
		if err != nil {
			parts = append(parts, err.Error())
		}
	}
	return api.Errorf(kind, "request: %s", strings.Join(parts, ": "))
}

func stack() string { return string(debug.Stack()) }
