package server

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

const tagVE = "virtual environments"

type veInput struct {
	Name string `path:"name" doc:"name of the VE"`
}

type stopInput struct {
	Name string `path:"name" doc:"name of the VE"`
	Body *api.StopRequest
}

func (s *Server) routeVEs() {
	huma.Register(s.api, s.starts(http.MethodPost, "/ves", "launch", tagVE, "Make a VE and start it"),
		func(ctx context.Context, in *struct{ Body api.LaunchRequest }) (*started, error) {
			if err := api.CheckName("ve", in.Body.Name); err != nil {
				return nil, failure(err)
			}
			return start(s.backend.Launch(ctx, in.Body))
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/ves", "list-ves", tagVE, "List all VEs, sorted by name"),
		func(ctx context.Context, _ *none) (*out[[]api.VE], error) {
			ves, err := s.backend.VEs(ctx)
			all := make([]api.VE, len(ves)) // the backend may keep its own
			for i := range ves {
				all[i] = whole(ves[i])
			}
			return answer(all, err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/ves/{name}", "get-ve", tagVE, "Get a VE"),
		func(ctx context.Context, in *veInput) (*out[api.VE], error) {
			ve, err := s.backend.VE(ctx, in.Name)
			return answer(whole(ve), err)
		})
	huma.Register(s.api, s.starts(http.MethodDelete, "/ves/{name}", "delete-ve", tagVE, "Delete a VE, also a running one"),
		func(ctx context.Context, in *veInput) (*started, error) { return start(s.backend.Delete(ctx, in.Name)) })
	s.routeActions()
	s.routeMoves()
	s.routeClones()
	s.routeSnapshots()
	s.raw(s.session("exec", "Run a command in a VE"), "", s.atHome(s.exec))
	s.raw(s.session("console", "Attach to a VE's console"), "", s.atHome(s.console))
	logs := s.operation(http.MethodGet, "/ves/{name}/logs", "logs", tagVE, "Read a VE's console output")
	logs.Parameters = []*huma.Param{pathParam("name", "name of the VE"), queryParam("follow", "go on as more comes", "boolean")}
	s.raw(logs, "text/plain", s.atHome(s.logs))
}

// routeActions are the verbs that act on a VE that is there.
func (s *Server) routeActions() {
	plain := []struct {
		verb, summary string
		act           func(context.Context, string) (api.Operation, error)
	}{
		{"start", "Start a stopped VE", s.backend.Start},
		{"pause", "Freeze a running VE", s.backend.Pause},
		{"resume", "Let a paused VE go on", s.backend.Resume},
	}
	for _, a := range plain {
		huma.Register(s.api, s.starts(http.MethodPost, "/ves/{name}/"+a.verb, a.verb+"-ve", tagVE, a.summary),
			func(ctx context.Context, in *veInput) (*started, error) { return start(a.act(ctx, in.Name)) })
	}
	halting := []struct {
		verb, summary string
		act           func(context.Context, string, api.StopRequest) (api.Operation, error)
	}{
		{"stop", "Halt a VE", s.backend.Stop},
		{"restart", "Halt a VE and start it again", s.backend.Restart},
	}
	for _, a := range halting {
		huma.Register(s.api, s.starts(http.MethodPost, "/ves/{name}/"+a.verb, a.verb+"-ve", tagVE, a.summary),
			func(ctx context.Context, in *stopInput) (*started, error) {
				var req api.StopRequest
				if in.Body != nil {
					req = *in.Body
				}
				return start(a.act(ctx, in.Name, req))
			})
	}
}

// logs streams a VE's console output as it is written. The VE is looked up first, so that an unknown one is an error
// and not an empty answer.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	follow, err := boolQuery(r, "follow")
	if err == nil {
		_, err = s.backend.VE(r.Context(), r.PathValue("name"))
	}
	if err != nil {
		writeProblem(w, err)
		return
	}
	ctx, cancel := s.streamContext(r)
	defer cancel()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	flush := &flusher{w: w, control: http.NewResponseController(w)}
	flush.control.Flush() //nolint:errcheck // the next write says so too
	if err := s.backend.Logs(ctx, r.PathValue("name"), follow, flush); err != nil && ctx.Err() == nil {
		s.log.Error("logs ended early", "ve", r.PathValue("name"), "err", err)
		panic(http.ErrAbortHandler) // the only way left to tell the client that this is not all
	}
}

// flusher passes on every write at once.
type flusher struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (f *flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.control.Flush()
	}
	return n, err
}

func boolQuery(r *http.Request, name string) (bool, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, api.Errorf(api.Invalid, "query %s=%q: want true or false", name, text)
	}
	return v, nil
}

// whole makes what the API promises as an array or object one, also when it is empty.
func whole(ve api.VE) api.VE {
	ve.Addresses = list(ve.Addresses)
	if ve.Labels == nil {
		ve.Labels = map[string]string{}
	}
	return ve
}

func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

func answer[T any](body T, err error) (*out[T], error) {
	if err != nil {
		return nil, failure(err)
	}
	return &out[T]{body}, nil
}

func start(op api.Operation, err error) (*started, error) {
	if err != nil {
		return nil, failure(err)
	}
	return &started{op}, nil
}
