package host

import (
	"context"
	"io"
	"slices"
	"sync"

	"polder/api"
)

// VEs lists all VEs, by name.
func (h *Host) VEs(ctx context.Context) ([]api.VE, error) {
	recs, err := h.ves.List(ctx)
	if err != nil {
		return nil, err
	}
	shown := make([]api.VE, len(recs))
	for i, rec := range recs {
		shown[i] = rec.Value.shown()
	}
	return shown, nil
}

// VE shows one VE, with what it can do on its host, as far as that one answers.
func (h *Host) VE(ctx context.Context, name string) (api.VE, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return api.VE{}, err
	}
	shown := v.shown()
	if v.Host == h.cfg.Name {
		shown.Capability = h.abilitiesOf(ctx, v.Model)
		return shown, nil
	}
	if _, err := h.cluster.Reachable(ctx, v.Host); err != nil {
		return shown, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := h.tell(ctx, v.Host, "/peer/v1/abilities/"+string(v.Model), struct{}{}, &shown.Capability); err != nil {
		h.log.Debug("a host does not say what its VEs can do", "host", v.Host, "error", err)
	}
	return shown, nil
}

// abilitiesOf is what VEs of a model can do on this host.
func (h *Host) abilitiesOf(ctx context.Context, m api.Model) []api.Capability {
	var found []api.Capability
	if probe, ok := h.abilities[m]; ok {
		found = probe(ctx)
	}
	if m == api.Container {
		limit := api.Capability{Name: "disk-limit", Level: api.OK, Detail: "enforced by the pool"}
		if ok, why := h.pool.Enforces(ctx); !ok {
			limit.Level, limit.Detail = api.Limited, "not enforced: "+why
		}
		found = append(found, limit)
	}
	return found
}

// abilitiesForPeer is abilitiesOf for another host.
func (h *Host) abilitiesForPeer(ctx context.Context, m string, _ struct{}) ([]api.Capability, error) {
	kind, err := api.ParseModel(m)
	if err != nil {
		return nil, err
	}
	return h.abilitiesOf(ctx, kind), nil
}

// remembered calls probe on first use only: capabilities change with a reboot or an upgrade, and the daemon is restarted by both.
func remembered(probe func(context.Context) []api.Capability) func(context.Context) []api.Capability {
	var mu sync.Mutex // guards found
	var found []api.Capability
	return func(ctx context.Context) []api.Capability {
		mu.Lock()
		defer mu.Unlock()
		if found == nil {
			found = probe(ctx)
		}
		return slices.Clone(found)
	}
}

// Capabilities is what doctor shows.
func (h *Host) Capabilities(ctx context.Context) ([]api.Capability, error) {
	return h.capabilities(ctx), nil
}

// Networks lists the networks: the default one.
func (h *Host) Networks(ctx context.Context) ([]api.Network, error) {
	recs, err := h.ves.List(ctx)
	if err != nil {
		return nil, err
	}
	rec, err := h.networks.Get(ctx, h.network.Name)
	if err != nil {
		return nil, err
	}
	n := rec.Value
	return []api.Network{{
		Name: n.Name, Bridge: n.Bridge, IPv4: n.IPv4.String(), IPv6: n.IPv6.String(), Domain: n.Domain, NAT: n.NAT, MTU: n.MTU, VEs: len(recs),
		Encrypted: n.Encrypted,
	}}, nil
}

// Pools lists the pools: the default one.
func (h *Host) Pools(ctx context.Context) ([]api.Pool, error) {
	total, free, err := h.pool.Space(ctx)
	if err != nil {
		return nil, err
	}
	volumes, err := h.pool.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	return []api.Pool{{
		Name: defaultPool, Host: h.cfg.Name, Driver: h.pool.Driver(), Path: h.pool.Path(), TotalBytes: total, FreeBytes: free, Volumes: len(volumes),
	}}, nil
}

// Volumes lists a pool's volumes with the VEs they belong to.
func (h *Host) Volumes(ctx context.Context, pool string) ([]api.Volume, error) {
	if pool != defaultPool {
		return nil, api.Errorf(api.NotFound, "pool %q: no such pool (see: polder pool list)", pool)
	}
	volumes, err := h.pool.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	recs, err := h.ves.List(ctx)
	if err != nil {
		return nil, err
	}
	owner := make(map[string]string, len(recs))
	for _, rec := range recs {
		owner[rec.Value.ID] = rec.Value.Name
	}
	shown := make([]api.Volume, len(volumes))
	for i, vol := range volumes {
		used, err := h.pool.Usage(ctx, vol.ID)
		if err != nil && api.KindOf(err) != api.NotFound {
			return nil, err
		}
		shown[i] = api.Volume{Name: vol.ID, Host: h.cfg.Name, Pool: pool, VE: owner[vol.ID], SizeBytes: vol.Size, UsedBytes: used}
	}
	return shown, nil
}

// Images lists the images.
func (h *Host) Images(ctx context.Context) ([]api.Image, error) { return h.images.List(ctx) }

// Image finds an image by alias or digest.
func (h *Host) Image(ctx context.Context, ref string) (api.Image, error) {
	return h.images.Resolve(ctx, ref)
}

// BuildImage starts building an image.
func (h *Host) BuildImage(ctx context.Context, req api.ImageBuildRequest) (api.Operation, error) {
	return h.images.Build(ctx, req)
}

// ImportImage reads body and starts importing it.
func (h *Host) ImportImage(ctx context.Context, req api.ImageImportRequest, body io.Reader) (api.Operation, error) {
	return h.images.Import(ctx, req, body)
}

// ExportImage writes an image to w.
func (h *Host) ExportImage(ctx context.Context, ref string, format api.ImageFormat, w io.Writer) error {
	return h.images.Export(ctx, ref, format, w)
}

// DeleteImage starts deleting an image.
func (h *Host) DeleteImage(ctx context.Context, ref string) (api.Operation, error) {
	return h.images.Delete(ctx, ref)
}

// Operations lists the operations, newest first.
func (h *Host) Operations(ctx context.Context) ([]api.Operation, error) { return h.engine.List(ctx) }

// Operation finds an operation.
func (h *Host) Operation(ctx context.Context, id string) (api.Operation, error) {
	return h.engine.Get(ctx, id)
}

// WaitOperation blocks until an operation is final.
func (h *Host) WaitOperation(ctx context.Context, id string, each func(api.Operation)) (api.Operation, error) {
	return h.engine.Wait(ctx, id, each)
}

// CancelOperation asks an operation to stop and undo what it did.
func (h *Host) CancelOperation(ctx context.Context, id string) error {
	return h.engine.Cancel(ctx, id)
}
