package server

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

const tagOperation = "operations and events"

type operationInput struct {
	ID string `path:"id" doc:"id of the operation"`
}

func (s *Server) routeOperations() {
	huma.Register(s.api, s.operation(http.MethodGet, "/operations", "list-operations", tagOperation, "List operations, newest first"),
		func(ctx context.Context, _ *none) (*out[[]api.Operation], error) {
			ops, err := s.backend.Operations(ctx)
			return answer(list(ops), err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/operations/{id}", "get-operation", tagOperation, "Get an operation"),
		func(ctx context.Context, in *operationInput) (*out[api.Operation], error) {
			return answer(s.backend.Operation(ctx, in.ID))
		})
	cancel := s.operation(http.MethodPost, "/operations/{id}/cancel", "cancel-operation", tagOperation, "Ask an operation to stop and undo what it did")
	huma.Register(s.api, cancel, func(ctx context.Context, in *operationInput) (*struct{}, error) {
		return nil, failure(s.backend.CancelOperation(ctx, in.ID))
	})
	watch := s.operation(http.MethodGet, "/operations/{id}/events", "watch-operation", tagOperation, "Follow an operation to its end (SSE, event: operation)")
	watch.Parameters = []*huma.Param{pathParam("id", "id of the operation")}
	s.raw(watch, "text/event-stream", s.watchOperation)
	events := s.operation(http.MethodGet, "/events", "events", tagOperation, "Follow what happens in the cluster (SSE)")
	events.Parameters = []*huma.Param{
		queryParam("after", "id of the last event seen; the Last-Event-ID header goes before it", "integer"),
		{Name: "Last-Event-ID", In: "header", Schema: &huma.Schema{Type: "integer"}},
	}
	s.raw(events, "text/event-stream", s.events)
}

// watchOperation sends every state of an operation and ends after the last one.
func (s *Server) watchOperation(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if _, err := s.backend.Operation(r.Context(), id); err != nil {
		writeProblem(w, err)
		return
	}
	ctx, cancel := s.streamContext(r)
	defer cancel()
	stream := newEventStream(ctx, w)
	defer stream.close()
	_, err := s.backend.WaitOperation(ctx, id, func(op api.Operation) {
		if stream.send("operation", 0, op) != nil {
			cancel()
		}
	})
	if err != nil && ctx.Err() == nil {
		stream.send("problem", 0, api.ProblemOf(err)) //nolint:errcheck // the client went away
	}
}

func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	after, err := lastEvent(r)
	if err != nil {
		writeProblem(w, err)
		return
	}
	ctx, cancel := s.streamContext(r)
	defer cancel()
	stream := newEventStream(ctx, w)
	defer stream.close()
	err = s.backend.Events(ctx, after, func(e api.Event) error { return stream.send("", e.ID, e) })
	if err != nil && ctx.Err() == nil {
		stream.send("problem", 0, api.ProblemOf(err)) //nolint:errcheck // the client went away
	}
}

func lastEvent(r *http.Request) (int64, error) {
	text := r.Header.Get("Last-Event-ID")
	if text == "" {
		text = r.URL.Query().Get("after")
	}
	if text == "" {
		return 0, nil
	}
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 0 {
		return 0, api.Errorf(api.Invalid, "last event %q: want the id of an event", text)
	}
	return id, nil
}
