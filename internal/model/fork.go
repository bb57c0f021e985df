package model

import (
	"context"
	"time"
)

// Forker is a model whose running VEs can be forked: others begin with the memory that one has at a moment, and go on from there.
type Forker interface {
	// Freeze takes the memory of a running VE, and all else that is not on its volume, at one moment. It stands still as shortly as can be;
	// still is called meanwhile, to take its volume at the same moment. Then it goes on, also after an error; after a crash of the
	// daemon Thaw lets it.
	Freeze(ctx context.Context, ve Spec, still func(ctx context.Context) error) (Frozen, error)
	// Thaw lets a VE go on whose Freeze was cut off by a crash. Of another one it touches nothing.
	Thaw(ctx context.Context, ve Spec) error
	// Fork makes a VE of what was frozen of another one, with a copy of that one's volume of the same moment. It stands still, its NICs'
	// gates shut, until Wake. After an error Stop and Remove leave nothing.
	Fork(ctx context.Context, ve Spec, from Frozen) (Process, error)
	// Wake lets a fork go on. Before its gates open it has an identity of its own: name, addresses, machine id, host keys. One that was
	// frozen as itself keeps what it has.
	Wake(ctx context.Context, ve Spec, from Frozen) error
	// OpenFrozen opens what Frozen.Save has written.
	OpenFrozen(dir string) (Frozen, error)
}

// Frozen is a VE at a moment, without its volume. It may be forked any number of times, at the same time too.
type Frozen interface {
	// Stood is for how long the VE stood still.
	Stood() time.Duration
	// Save writes it to files in an empty directory, from where it can be forked too, as long as they are there. It takes as long as the
	// disk takes for the memory that is in use.
	Save(ctx context.Context, dir string) error
	// Close gives back what it takes. Forks that run keep what they need.
	Close() error
}
