package client

import (
	"context"
	"net/http"

	"polder/api"
)

// Move starts to move a VE to another host.
func (c *Client) Move(ctx context.Context, name string, req api.MoveRequest) (api.Operation, error) {
	return c.act(ctx, name, "move", req)
}

// PlanMove says what a move would do, and does nothing. A move that is not possible is a plan too, no error.
func (c *Client) PlanMove(ctx context.Context, name string, req api.MoveRequest) (plan api.MovePlan, err error) {
	err = c.call(ctx, http.MethodPost, vePath(name)+"/move/plan", req, &plan)
	return plan, err
}
