package image

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/operation/operationtest"
)

func TestImportSurvivesEverything(t *testing.T) {
	content := gzipped(t, smallSystem(t))
	operationtest.Exercise(t, operationtest.Harness{New: func(t testing.TB) operationtest.World {
		w := newWorld(t)
		return operationtest.World{
			Boot: w.boot,
			Start: func(ctx context.Context, _ *operation.Engine) (api.Operation, error) {
				return w.lib.Import(ctx, api.ImageImportRequest{Alias: "new"}, bytes.NewReader(content))
			},
			Check: func(t testing.TB, o operationtest.Outcome) {
				if err := w.lib.Tidy(t.Context()); err != nil {
					t.Error(err)
				}
				images, err := w.lib.List(t.Context())
				left := w.leftovers(t)
				switch {
				case err != nil:
					t.Error(err)
				case o.Operation.State == api.OperationDone && (len(images) != 1 || !slices.Equal(images[0].Aliases, []string{"new"}) || len(left) != 1):
					t.Errorf("done: images %+v, files %q", images, left)
				case o.Operation.State != api.OperationDone && len(images)+len(left) > 0:
					t.Errorf("%s: images %+v, files %q", o.Operation.State, images, left)
				}
			},
		}
	}})
}

func TestDeleteSurvivesEverything(t *testing.T) {
	operationtest.Exercise(t, operationtest.Harness{New: func(t testing.TB) operationtest.World {
		w := newWorld(t)
		if op := w.importFile(t, "old", smallSystem(t)); op.State != api.OperationDone {
			t.Fatalf("%+v", op.Error)
		}
		return operationtest.World{
			Boot: w.boot,
			Start: func(ctx context.Context, _ *operation.Engine) (api.Operation, error) {
				return w.lib.Delete(ctx, "old")
			},
			Check: func(t testing.TB, o operationtest.Outcome) {
				images, err := w.lib.List(t.Context())
				left := w.leftovers(t)
				switch {
				case err != nil:
					t.Error(err)
				case o.Operation.State == api.OperationDone && len(images)+len(left) > 0:
					t.Errorf("done: images %+v, files %q", images, left)
				case o.Operation.State != api.OperationDone && (len(images) != 1 || len(left) != 1):
					t.Errorf("%s: images %+v, files %q", o.Operation.State, images, left)
				}
			},
		}
	}})
}
