// Package storage says what a pool driver must be able to do: keep image bases, and make volumes of them that cost
// what differs. storage/dir and storage/btrfs do it; storagetest has the suite that both must pass.
//
// It knows nothing of VEs, images or the store: names are opaque ids given by the caller. What a pool holds is read from
// the pool itself, so that a lost daemon loses nothing.
package storage

import (
	"context"

	"polder/api"
)

// Kind is the form of a base or a volume.
type Kind string

// The kinds.
const (
	Tree Kind = "tree" // a directory: the root of a container
	Disk Kind = "disk" // a disk image file: the disk of a vm
)

// Pool keeps bases and volumes. All methods are idempotent and survive being cut off at any instant: what is half-made
// is invisible, and made again or removed by the next call. Errors have kinds: a full pool is api.Exhausted, a missing
// base api.NotFound. Safe for concurrent use.
type Pool interface {
	Sender

	Driver() string // "btrfs", "dir"
	Path() string

	// AddBase makes the base id: fill writes it at path (an empty directory for a Tree; a file that fill creates for a
	// Disk, raw), then it becomes visible and read-only at once. A base that exists is left alone and fill is not called.
	// When fill fails, nothing remains.
	AddBase(ctx context.Context, id string, kind Kind, fill func(ctx context.Context, path string) error) error
	// Base gives the path of a base, for reading.
	Base(ctx context.Context, id string, kind Kind) (path string, err error)
	// Bases lists what bases there are, in no order.
	Bases(ctx context.Context) ([]Base, error)
	// DeleteBase removes a base; one that volumes still need (their data would go with it) is api.Conflict; one that is
	// not there is no error.
	DeleteBase(ctx context.Context, id string, kind Kind) error

	// Clone makes the volume id as a copy-on-write child of a base. size is a Disk's virtual size (at least the base's: else
	// api.Invalid) or a Tree's limit, kept where the driver can (see Enforces); 0: the base's size, or no limit. A volume
	// that exists is returned as it is.
	Clone(ctx context.Context, base string, kind Kind, id string, size api.Bytes) (Volume, error)
	// Copy makes the volume id of what the volume from holds now, as after a power cut: whoever uses that has to stand still, and be
	// synced, for a consistent one. It has the same base and size; from may be deleted afterwards. It takes milliseconds where the
	// file system shares blocks between files; elsewhere what differs from the base is copied. A volume that exists is returned as it
	// is.
	Copy(ctx context.Context, from, id string) (Volume, error)
	// Volume finds a volume: api.NotFound when it is not there.
	Volume(ctx context.Context, id string) (Volume, error)
	Volumes(ctx context.Context) ([]Volume, error)
	// Delete removes a volume; one that is not there is no error.
	Delete(ctx context.Context, id string) error
	// Usage in bytes that no other volume shares, as far as the driver can tell.
	Usage(ctx context.Context, id string) (api.Bytes, error)

	// Tidy removes what calls that were cut off left half-made. Called once at start, before anything else.
	Tidy(ctx context.Context) error
	Space(ctx context.Context) (total, free api.Bytes, err error)
	// Enforces says whether the size limit of a Tree is kept, and if not, why.
	Enforces(ctx context.Context) (ok bool, why string)
}

// Base names a base.
type Base struct {
	ID   string
	Kind Kind
}

// Volume is a piece of a pool.
type Volume struct {
	ID   string
	Kind Kind
	// Path of a Tree's root directory, or of a Disk's file.
	Path   string
	Format string // of a Disk: "raw" or "qcow2"
	Size   api.Bytes
	// Lower, Upper, Work: of a Tree that is an overlay to be mounted at Path by who runs it; else empty.
	Lower, Upper, Work string
}
