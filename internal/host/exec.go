package host

import (
	"context"
	"fmt"

	"polder/api"
	"polder/internal/model"
)

// Exec runs a command in a running VE and blocks until it has ended.
func (h *Host) Exec(ctx context.Context, name string, req api.ExecRequest, streams model.Streams) (int, error) {
	if len(req.Command) == 0 {
		return 0, api.Errorf(api.Invalid, "exec in ve %q: no command given", name)
	}
	v, impl, spec, err := h.inside(ctx, name)
	if err != nil {
		return 0, err
	}
	execer, ok := impl.(model.Execer)
	if !ok {
		return 0, api.Errorf(api.Unsupported, "exec in ve %q: a %s can't run commands", name, v.Model)
	}
	code, err := execer.Exec(ctx, spec, req, streams)
	if err != nil {
		return 0, fmt.Errorf("exec in ve %q: %w", name, err)
	}
	return code, nil
}

// Console attaches to a running VE's console until the user leaves.
func (h *Host) Console(ctx context.Context, name string, streams model.Streams) error {
	v, impl, spec, err := h.inside(ctx, name)
	if err != nil {
		return err
	}
	consoler, ok := impl.(model.Consoler)
	if !ok {
		return api.Errorf(api.Unsupported, "console of ve %q: a %s has none", name, v.Model)
	}
	return consoler.Console(ctx, spec, streams)
}

// inside gives what is needed to reach into a VE; one that doesn't run is a Precondition error.
func (h *Host) inside(ctx context.Context, name string) (VE, model.Model, model.Spec, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return VE{}, nil, model.Spec{}, err
	}
	switch v.State {
	case api.Running:
	case api.Paused:
		return VE{}, nil, model.Spec{}, api.Errorf(api.Precondition, "ve %q is paused: polder resume %s first", name, name)
	default:
		return VE{}, nil, model.Spec{}, api.Errorf(api.Precondition, "ve %q is %s: polder start %s first", name, v.State, name)
	}
	impl, spec, err := h.placed(ctx, v)
	return v, impl, spec, err
}
