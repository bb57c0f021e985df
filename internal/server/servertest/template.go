package servertest

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"polder/api"
)

// Templates implements server.Backend.
func (b *Backend) Templates(context.Context) ([]api.Template, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.templates), nil
}

// WarmImage implements server.Backend.
func (b *Backend) WarmImage(_ context.Context, ref string, req api.WarmRequest) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	img, ok := b.find(ref)
	if !ok {
		return api.Operation{}, api.Errorf(api.NotFound, "image %q not found", ref)
	}
	t := api.Template{
		Image: img.Digest, Host: cmp.Or(req.Host, "h1"), CPUs: cmp.Or(req.CPUs, 1), MemoryBytes: cmp.Or(req.MemoryBytes, 512*api.MiB),
		DiskBytes: cmp.Or(req.DiskBytes, 10*api.GiB), UsedBytes: 300 * api.MiB, CreatedAt: epoch,
	}
	at := slices.Index(b.templates, t)
	switch {
	case req.Off && at < 0:
		return api.Operation{}, api.Errorf(api.NotFound, "warm image %q: host %q has no such template", ref, t.Host)
	case req.Off:
		return b.start("image.cool", "template/"+t.Image, "", func() { b.templates = slices.Delete(b.templates, at, at+1) }), nil
	case at >= 0:
		return api.Operation{}, api.Errorf(api.Exists, "warm image %q: host %q has such a template already", ref, t.Host)
	}
	var record *operation
	op := b.start("image.warm", "template/"+t.Image, "", func() {
		b.templates = append(b.templates, t)
		record.Result, _ = json.Marshal(t)
	})
	record = b.ops[len(b.ops)-1] // the effect comes later: mu is held until here
	return op, nil
}
