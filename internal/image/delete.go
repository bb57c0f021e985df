package image

import (
	"context"
	"strings"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/storage"
)

const kindDelete = "image.delete"

type deleting struct{ Digest string }

// Delete starts an operation that removes an image, with all of its aliases. One that virtual environments need is api.Conflict.
func (l *Library) Delete(ctx context.Context, ref string) (api.Operation, error) {
	rec, err := l.resolve(ctx, ref)
	if err != nil {
		return api.Operation{}, err
	}
	if err := l.checkUnused(ctx, rec.Key); err != nil {
		return api.Operation{}, err
	}
	return operation.Start(ctx, l.Engine, kindDelete, operation.Request{Target: "image/" + rec.Key, Frees: true}, deleting{Digest: rec.Key})
}

func (l *Library) checkUnused(ctx context.Context, digest string) error {
	names, err := l.InUse(ctx, digest)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return api.Errorf(api.Conflict, "delete image %s: in use by %s: delete them first", shortDigest(digest), strings.Join(names, ", "))
	}
	return nil
}

func (l *Library) registerDelete() {
	operation.Register(l.Engine, operation.Definition[deleting]{
		Kind: kindDelete,
		Steps: []operation.Step[deleting]{
			{Name: "check", Do: l.checkDelete, Undo: l.keep},
			{Name: "remove", Do: l.remove},
		},
		PointOfNoReturn: "remove",
	})
}

// checkDelete looks again, now that the lock keeps new virtual environments away.
func (l *Library) checkDelete(ctx context.Context, r *operation.Run[deleting]) error {
	if err := l.claim(r.State.Digest, r.ID, beingDeleted); err != nil {
		return err
	}
	return l.checkUnused(ctx, r.State.Digest)
}

func (l *Library) keep(_ context.Context, r *operation.Run[deleting]) error {
	l.unclaim(r.State.Digest, r.ID)
	return nil
}

// remove takes the record first: nobody finds an image whose bases are half gone.
func (l *Library) remove(ctx context.Context, r *operation.Run[deleting]) error {
	if err := l.claim(r.State.Digest, r.ID, beingDeleted); err != nil {
		return err
	}
	if err := l.Images.Delete(ctx, r.State.Digest); err != nil && api.KindOf(err) != api.NotFound {
		return err
	}
	if err := l.Pool.DeleteBase(ctx, baseID(r.State.Digest), storage.Disk); err != nil {
		return err
	}
	if err := l.Pool.DeleteBase(ctx, baseID(r.State.Digest), storage.Tree); err != nil {
		return err
	}
	l.unclaim(r.State.Digest, r.ID)
	return nil
}
