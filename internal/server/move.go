package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

type moveInput struct {
	Name string `path:"name" doc:"name of the VE"`
	Body api.MoveRequest
}

func (s *Server) routeMoves() {
	move := s.starts(http.MethodPost, "/ves/{name}/move", "move-ve", tagVE, "Move a VE to another host")
	move.Description = "The operation's result is a MoveResult. Up to its point of no return a move that fails or is cancelled leaves the VE as it was."
	huma.Register(s.api, move, func(ctx context.Context, in *moveInput) (*started, error) {
		if err := checkMove(in.Body); err != nil {
			return nil, failure(err)
		}
		return start(s.backend.Move(ctx, in.Name, in.Body))
	})
	plan := s.operation(http.MethodPost, "/ves/{name}/move/plan", "plan-move", tagVE, "Say what a move would do, and do nothing")
	huma.Register(s.api, plan, func(ctx context.Context, in *moveInput) (*out[api.MovePlan], error) {
		if err := checkMove(in.Body); err != nil {
			return nil, failure(err)
		}
		plan, err := s.backend.PlanMove(ctx, in.Name, in.Body)
		plan.Blockers = list(plan.Blockers)
		return answer(plan, err)
	})
}

// checkMove finds what no backend could do.
func checkMove(req api.MoveRequest) error {
	if err := api.CheckName("host", req.To); err != nil {
		return err
	}
	if req.MaxDowntimeMS < 0 || req.BandwidthBytes < 0 {
		return api.Errorf(api.Invalid, "move: max_downtime_ms and bandwidth_bytes_per_second can't be less than 0")
	}
	return nil
}
