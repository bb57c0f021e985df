package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/operation"
)

// template is the record of an image's VM as it was when it had booted, on one host. It is kept in the manner of a snapshot with memory.
type template struct {
	ID        string    `json:"id"`
	Image     string    `json:"image"` // digest
	Host      string    `json:"host"`
	CPUs      int       `json:"cpus"`
	Memory    api.Bytes `json:"memory_bytes"`
	Disk      api.Bytes `json:"disk_bytes"`
	CreatedAt time.Time `json:"created_at"`
}

// key is the same for all templates that could take each other's place.
func (t template) key() string {
	return fmt.Sprintf("%s/%s/%d-%d-%d", t.Image, t.Host, t.CPUs, t.Memory, t.Disk)
}

func (t template) volume() string { return "template-" + t.ID }

func (h *Host) templateDir(t template) string { return filepath.Join(h.cfg.Data, "templates", t.ID) }

// templateFor is the template that a new VE can be a fork of; ok is false when there is none on this host.
func (h *Host) templateFor(ctx context.Context, v VE) (t template, ok bool) {
	if v.Model != api.VM || v.UserData != "" || v.Firmware != api.BIOS {
		return t, false
	}
	rec, err := h.templates.Get(ctx, template{Image: v.ImageDigest, Host: h.cfg.Name, CPUs: v.CPUs, Memory: v.Memory, Disk: v.Disk}.key())
	return rec.Value, err == nil
}

// Templates lists all templates.
func (h *Host) Templates(ctx context.Context) ([]api.Template, error) {
	recs, err := h.templates.List(ctx)
	shown := make([]api.Template, len(recs))
	for i, rec := range recs {
		t := rec.Value
		shown[i] = api.Template{Image: t.Image, Host: t.Host, CPUs: t.CPUs, MemoryBytes: t.Memory, DiskBytes: t.Disk, CreatedAt: t.CreatedAt}
		if t.Host == h.cfg.Name {
			shown[i].UsedBytes = h.usage(ctx, t.volume(), h.templateDir(t))
		}
	}
	return shown, err
}

// warm is the state of the operations "image.warm" and "image.cool".
type warm struct {
	Template template `json:"template"`
	VE       VE       `json:"ve"` // that boots for it, and is deleted then
}

type warmRun = operation.Run[warm]

// WarmImage makes, or removes, a template of an image.
func (h *Host) WarmImage(ctx context.Context, ref string, req api.WarmRequest) (api.Operation, error) {
	op, err := h.warmImage(ctx, ref, req)
	if err != nil {
		return op, fmt.Errorf("warm image %q: %w", ref, err)
	}
	return op, nil
}

func (h *Host) warmImage(ctx context.Context, ref string, req api.WarmRequest) (api.Operation, error) {
	id := uuid.NewString()
	img, v, err := h.planLaunch(ctx, api.LaunchRequest{
		Name: "warm-" + id[:8], Image: ref, Model: api.VM, CPUs: req.CPUs, MemoryBytes: req.MemoryBytes, DiskBytes: req.DiskBytes,
		Host: req.Host, Restart: api.RestartNever, Labels: map[string]string{"polder": "template"},
	})
	if err != nil {
		return api.Operation{}, err
	}
	state := warm{VE: v, Template: template{
		ID: id, Image: img.Digest, Host: v.Host, CPUs: v.CPUs, Memory: v.Memory, Disk: v.Disk, CreatedAt: v.CreatedAt,
	}}
	rec, err := h.templates.Get(ctx, state.Template.key())
	lock := []operation.Lock{{Key: "image/" + img.Digest, Shared: true}}
	switch {
	case req.Off && err != nil:
		return api.Operation{}, api.Errorf(api.NotFound, "host %q has no template of it with %d cpus, %v of memory and a disk of %v (see: polder image warm --list)", v.Host, v.CPUs, v.Memory, v.Disk)
	case req.Off:
		state.Template = rec.Value
		return operation.Start(ctx, h.engine, "image.cool", operation.Request{Target: "template/" + state.Template.key(), Host: v.Host, Locks: lock, Frees: true}, state)
	case err == nil:
		return api.Operation{}, api.Errorf(api.Exists, "host %q has such a template already: remove it with --off first", v.Host)
	}
	if err := h.canFork(api.VM); err != nil {
		return api.Operation{}, err
	}
	return operation.Start(ctx, h.engine, "image.warm", operation.Request{
		Target: "template/" + state.Template.key(), Host: v.Host, Locks: append(lock, operation.Lock{Key: "ve/" + v.Name}),
	}, state)
}

// dropTemplate removes what a template has on this host.
func (h *Host) dropTemplate(ctx context.Context, t template) error {
	return errors.Join(h.pool.Delete(ctx, t.volume()), os.RemoveAll(h.templateDir(t)))
}
