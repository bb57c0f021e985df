package host

import (
	"context"
	"fmt"

	"polder/api"
	"polder/internal/image"
	"polder/internal/operation"
)

// Publish starts to make an image of a VE, on the VE's host. A stopped VE stays so meanwhile.
func (h *Host) Publish(ctx context.Context, name string, req api.PublishRequest) (api.Operation, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return api.Operation{}, err
	}
	op, err := h.publish(ctx, v, req)
	if err != nil {
		return op, fmt.Errorf("publish ve %q: %w", name, err)
	}
	return op, nil
}

func (h *Host) publish(ctx context.Context, v VE, req api.PublishRequest) (api.Operation, error) {
	from := image.Source{Volume: v.ID, Of: fmt.Sprintf("ve %s, of %s", v.Name, v.Image), Config: v.App}
	want := operation.Request{Host: v.Host}
	switch {
	case req.Snapshot != "":
		s, err := h.snapshotOf(ctx, v, req.Snapshot)
		if err != nil {
			return api.Operation{}, err
		}
		from.Volume = s.volume()
		from.Of += ", as of snapshot " + s.Name
	case v.State != api.Stopped && v.State != api.Failed:
		return api.Operation{}, api.Errorf(api.Precondition, "it is %s: stop it, or make the image of a snapshot (polder snapshot create %s; polder image publish --snapshot)", v.State, v.Name)
	default:
		want.Locks = []operation.Lock{{Key: "ve/" + v.Name}}
	}
	if _, err := h.cluster.Reachable(ctx, v.Host); err != nil {
		return api.Operation{}, err
	}
	return h.images.Publish(ctx, req, from, want)
}
