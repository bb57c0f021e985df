package container

import (
	"context"
	"errors"

	"polder/internal/model"
)

var _ model.Quiescer = (*Model)(nil)

// Quiesce implements model.Quiescer: the processes stand still meanwhile. What they have written is in the page cache of the host, which
// a copy of the volume finds.
func (m *Model) Quiesce(ctx context.Context, ve model.Spec, do func(ctx context.Context) error) (string, error) {
	if err := m.Pause(ctx, ve); err != nil {
		return "", err
	}
	err := do(ctx)
	return "its processes stood still", errors.Join(err, m.Resume(context.WithoutCancel(ctx), ve))
}

// Release implements model.Quiescer.
func (m *Model) Release(ctx context.Context, ve model.Spec) error {
	if _, ok := m.running(ve); !ok {
		return nil
	}
	return m.Resume(ctx, ve)
}
