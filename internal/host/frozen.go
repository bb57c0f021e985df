package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"polder/internal/model"
)

// freezeInto writes what a running VE is at a moment to files in dir; take copies its volume at that moment. stood is for how long the VE
// stood still. It can be called again after it was cut off.
func (h *Host) freezeInto(ctx context.Context, forker model.Forker, spec model.Spec, dir string, take func(context.Context) error) (stood time.Duration, err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return 0, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return 0, err
	}
	frozen, err := forker.Freeze(ctx, spec, take)
	if err != nil {
		return 0, err
	}
	return frozen.Stood(), errors.Join(frozen.Save(ctx, dir), frozen.Close())
}

// forkFrom starts a VE with what freezeInto wrote: its own past, or that of another one. Its volume becomes what the one of that moment
// is: a try before, that was cut off, may have run, and written what the memory knows nothing of.
func (h *Host) forkFrom(ctx context.Context, v VE, dir, volume string) error {
	if err := h.takeDown(ctx, v); err != nil {
		return err
	}
	if err := h.pool.Delete(ctx, v.ID); err != nil {
		return err
	}
	if _, err := h.pool.Copy(ctx, volume, v.ID); err != nil {
		return err
	}
	impl, spec, err := h.placed(ctx, v)
	if err != nil {
		return err
	}
	forker := impl.(model.Forker)
	from, err := forker.OpenFrozen(dir)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // it was read only
	if err := os.MkdirAll(spec.Dir, 0o711); err != nil {
		return err
	}
	p, err := forker.Fork(ctx, spec, from)
	if err != nil {
		return err
	}
	if err := forker.Wake(ctx, spec, from); err != nil {
		return err
	}
	return h.started(ctx, v, p)
}
