package host

import (
	"context"
	"io"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/operation"
)

// registerTemplates: a template is what a VE is that boots for it, and is taken apart again.
func (h *Host) registerTemplates() {
	// The launch's own steps, on the VE that boots.
	as := func(step operation.Step[launch]) operation.Step[warm] {
		with := func(do func(context.Context, *operation.Run[launch]) error) func(context.Context, *warmRun) error {
			if do == nil {
				return nil
			}
			return func(ctx context.Context, r *warmRun) error {
				l := &operation.Run[launch]{ID: r.ID, Target: r.Target, State: launch{VE: r.State.VE}}
				err := do(ctx, l)
				r.State.VE = l.State.VE
				return err
			}
		}
		return operation.Step[warm]{Name: step.Name, Do: with(step.Do), Undo: with(step.Undo)}
	}
	var steps []operation.Step[warm]
	for _, step := range h.launchSteps() {
		steps = append(steps, as(step))
	}
	steps = append(steps,
		operation.Step[warm]{Name: "boot", Do: h.awaitBoot},
		operation.Step[warm]{Name: "freeze", Do: h.freezeTemplate, Undo: func(ctx context.Context, r *warmRun) error { return h.dropTemplate(ctx, r.State.Template) }},
		operation.Step[warm]{Name: "tidy", Do: h.finishTemplate},
	)
	operation.Register(h.engine, operation.Definition[warm]{Kind: "image.warm", Steps: steps, AfterCrash: operation.Undo, PointOfNoReturn: "tidy"})
	operation.Register(h.engine, operation.Definition[warm]{Kind: "image.cool", PointOfNoReturn: "remove", Steps: []operation.Step[warm]{
		{Name: "remove", Do: func(ctx context.Context, r *warmRun) error {
			if rec, err := h.templates.Get(ctx, r.State.Template.key()); err == nil && rec.Value.ID == r.State.Template.ID {
				if err := h.templates.DeleteIf(ctx, rec); err != nil {
					return err
				}
			}
			return h.dropTemplate(ctx, r.State.Template)
		}},
	}})
}

const (
	// warmPatience is how long the boot may take: emulated systems take a minute or two on a busy host.
	warmPatience = 10 * time.Minute
	// restTime is how long a system that has booted is given to come to rest: what it still does then, every fork does.
	restTime = 5 * time.Second
)

// awaitBoot waits until the system inside has booted. One without systemd has when its agent runs a command.
func (h *Host) awaitBoot(ctx context.Context, r *warmRun) error {
	impl, spec, err := h.placed(ctx, r.State.VE)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, warmPatience, api.Errorf(api.Unavailable, "it has not booted within %s", warmPatience))
	defer cancel()
	wait := api.ExecRequest{Command: []string{"/bin/sh", "-c", "! command -v systemctl >/dev/null || systemctl is-system-running --wait; true"}}
	if _, err := impl.(model.Execer).Exec(ctx, spec, wait, model.Streams{Stdout: io.Discard, Stderr: io.Discard}); err != nil {
		return err
	}
	select {
	case <-time.After(restTime):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (h *Host) freezeTemplate(ctx context.Context, r *warmRun) error {
	t := r.State.Template
	impl, spec, err := h.placed(ctx, r.State.VE)
	if err != nil {
		return err
	}
	_, err = h.freezeInto(ctx, impl.(model.Forker), spec, h.templateDir(t), func(ctx context.Context) error {
		_, err := h.pool.Copy(ctx, r.State.VE.ID, t.volume())
		return err
	})
	return err
}

// finishTemplate writes the record, and deletes the VE that booted.
func (h *Host) finishTemplate(ctx context.Context, r *warmRun) error {
	if _, err := h.templates.Put(ctx, r.State.Template.key(), r.State.Template); err != nil {
		return err
	}
	if err := h.tearDown(ctx, r.State.VE); err != nil {
		return err
	}
	if err := h.pool.Delete(ctx, r.State.VE.ID); err != nil {
		return err
	}
	if err := h.forget(ctx, r.State.VE); err != nil {
		return err
	}
	r.Result(api.Template{
		Image: r.State.Template.Image, Host: h.cfg.Name, CPUs: r.State.Template.CPUs, MemoryBytes: r.State.Template.Memory,
		DiskBytes: r.State.Template.Disk, UsedBytes: h.usage(ctx, r.State.Template.volume(), h.templateDir(r.State.Template)),
		CreatedAt: r.State.Template.CreatedAt,
	})
	return nil
}
