package model

import "context"

// Quiescer is a model that can have a running VE put in order, for a moment, what it writes to its volume.
type Quiescer interface {
	// Quiesce calls do while the VE writes nothing; how says in words what was done for that. The VE goes on afterwards, also after an
	// error; after a crash of the daemon Release lets it.
	Quiesce(ctx context.Context, ve Spec, do func(ctx context.Context) error) (how string, err error)
	// Release lets a VE write again whose Quiesce was cut off by a crash. Idempotent.
	Release(ctx context.Context, ve Spec) error
}
