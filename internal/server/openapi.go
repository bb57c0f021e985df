package server

import (
	"encoding/json"
	"net/http"
	"reflect"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

// describe is huma's configuration: JSON only, no $schema links in answers, and the description served by ourselves.
func describe(version string) huma.Config {
	config := huma.DefaultConfig("Polder", version)
	config.CreateHooks = nil
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.Components.Schemas.RegisterTypeAlias(reflect.TypeFor[Problem](), reflect.TypeFor[api.Problem]())
	config.RejectUnknownQueryParameters = true
	config.Info.Description = "Virtual environments: containers, virtual machines and partitions from one image. " +
		"Errors are RFC 9457 problems with a `kind`. An image's alias holds slashes: escape them in a path (`debian%2F13`)."
	return config
}

// openAPI serves the description; it is complete once New has returned, and rendered at the first request.
func (s *Server) openAPI() http.Handler {
	render := sync.OnceValues(func() ([]byte, error) { return json.Marshal(s.api.OpenAPI()) })
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		data, err := render()
		if err != nil {
			writeProblem(w, api.Errorf(api.Internal, "render openapi: %w", err))
			return
		}
		w.Header().Set("Content-Type", "application/openapi+json")
		w.Write(data) //nolint:errcheck // the client went away: nobody left to tell
	})
}

// none is the input of a route without parameters.
type none struct{}

// out is an answer with a JSON body.
type out[T any] struct{ Body T }

// started is the answer of a route that starts an operation.
type started struct{ Body api.Operation }

func (s *Server) operation(method, path, id, tag, summary string) huma.Operation {
	return huma.Operation{
		OperationID:  id,
		Method:       method,
		Path:         "/" + api.Version + path,
		Summary:      summary,
		Tags:         []string{tag},
		MaxBodyBytes: maxBody,
		// Handlers may take longer than a deadline on the connection would let them; headers have their own limit.
		BodyReadTimeout: -1,
	}
}

// starts describes a route that answers 202 with an operation.
func (s *Server) starts(method, path, id, tag, summary string) huma.Operation {
	op := s.operation(method, path, id, tag, summary)
	op.DefaultStatus = http.StatusAccepted
	return op
}

// raw is a route whose body or answer is a stream, described by hand: huma would hold it in memory.
func (s *Server) raw(op huma.Operation, answerType string, serve http.HandlerFunc) {
	if op.Responses == nil {
		status := "200"
		if op.DefaultStatus == http.StatusSwitchingProtocols {
			status = "101"
		}
		op.Responses = map[string]*huma.Response{status: {Description: op.Summary}}
		if answerType != "" {
			op.Responses[status].Content = map[string]*huma.MediaType{answerType: {}}
		}
	}
	op.Responses["default"] = &huma.Response{
		Description: "Error",
		Content: map[string]*huma.MediaType{
			"application/problem+json": {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}},
		},
	}
	s.api.OpenAPI().AddOperation(&op)
	s.mux.HandleFunc(op.Method+" "+op.Path, serve)
}

func pathParam(name, doc string) *huma.Param {
	return &huma.Param{Name: name, In: "path", Required: true, Description: doc, Schema: &huma.Schema{Type: "string"}}
}

func queryParam(name, doc, typ string) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: doc, Schema: &huma.Schema{Type: typ}}
}
