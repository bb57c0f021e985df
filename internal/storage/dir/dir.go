// Package dir keeps a pool in a directory of any file system.
//
// A volume of a tree is always an overlay over the base: copying a tree file by file costs seconds even where files can
// share extents. A volume of a disk shares the base's extents where the file system can (xfs, btrfs), else it is a qcow2
// image on top of the base, which the VE's own user must then be able to read: such a base is readable by all who know
// its name. Trees' limits are not kept.
//
// It does not mount the overlays: whoever runs the VE does. Bookkeeping, concurrency and crash safety are package
// pooldir's.
package dir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
	"polder/internal/storage"
	"polder/internal/storage/pooldir"
)

// Pool is a storage.Pool.
type Pool struct {
	*pooldir.Pool
	reflink bool
	noTrees string // why trees cannot be overlays here; "": they can

	departures departures
	arrivals   arrivals
}

var _ storage.Pool = (*Pool)(nil)

// Open opens the pool at path, a directory.
func Open(_ context.Context, name, path string) (*Pool, error) {
	p := &Pool{}
	var err error
	if p.Pool, err = pooldir.New(name, path, driver{p}); err != nil {
		return nil, err
	}
	p.reflink = pooldir.CanReflink(p.Path())
	var s unix.Statfs_t
	if err := unix.Statfs(p.Path(), &s); err != nil {
		return nil, fmt.Errorf("open pool %q: statfs %s: %w", name, p.Path(), err)
	}
	switch s.Type {
	case unix.OVERLAYFS_SUPER_MAGIC:
		p.noTrees = "an overlay"
	case unix.NFS_SUPER_MAGIC:
		p.noTrees = "NFS"
	}
	return p, nil
}

// Driver is "dir".
func (p *Pool) Driver() string { return "dir" }

// Enforces is false: a directory has no limit of its own.
func (p *Pool) Enforces(context.Context) (bool, string) {
	return false, "a pool of the dir driver has no limit for a directory: use a btrfs pool"
}

// Reflinks says whether disks share extents with their base rather than being qcow2 images on top of it.
func (p *Pool) Reflinks() bool { return p.reflink }

// Usage is what an overlay's upper layer takes, or a disk's extents that nothing else shares.
func (p *Pool) Usage(ctx context.Context, id string) (api.Bytes, error) {
	v, err := p.Volume(ctx, id)
	if err != nil {
		return 0, err
	}
	var used api.Bytes
	switch {
	case v.Kind == storage.Tree:
		used, err = pooldir.TreeUsage(ctx, v.Upper)
	case p.reflink && v.Format == "raw":
		used, err = pooldir.Unshared(v.Path)
	default:
		used, err = pooldir.TreeUsage(ctx, v.Path)
	}
	if err != nil {
		return 0, fmt.Errorf("usage of volume %s of pool %q: %w", id, p.Name(), err)
	}
	return used, nil
}

// driver makes trees and copies for pooldir.
type driver struct{ *Pool }

func (d driver) NeedsBase(kind storage.Kind) bool { return kind == storage.Tree || !d.reflink }

func (d driver) Complete(v *storage.Volume, dir string, meta pooldir.Meta) {
	if v.Kind != storage.Tree {
		return
	}
	base := pooldir.FileName(meta.Base) + "." + string(storage.Tree)
	v.Lower = filepath.Join(d.Path(), "bases", base, pooldir.TreeName)
	v.Upper = filepath.Join(dir, "upper")
	v.Work = filepath.Join(dir, "work")
}

func (d driver) MakeTree(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755) // whatever the umask
}

// Seal cannot keep root from writing to a tree; overlays do not.
func (d driver) Seal(path string, kind storage.Kind) error {
	if kind == storage.Tree {
		return nil
	}
	return os.Chmod(path, 0o444)
}

func (d driver) CloneTree(_ context.Context, base, dir string, meta pooldir.Meta) error {
	if d.noTrees != "" {
		return api.Errorf(api.Unsupported, "the file system of %s is %s, on which a container's root cannot be made: use a pool on btrfs, ext4 or xfs",
			d.Path(), d.noTrees)
	}
	if err := pooldir.WriteMeta(dir, meta); err != nil {
		return err
	}
	root, err := os.Stat(base)
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Stat(base, &stat); err != nil {
		return err
	}
	for _, name := range []string{"work", "upper", pooldir.TreeName} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if name != "upper" {
			continue
		}
		// The merged root directory has the upper one's owner and mode.
		if err := os.Chmod(path, root.Mode()); err != nil {
			return err
		}
		if err := os.Chown(path, int(stat.Uid), int(stat.Gid)); err != nil {
			return err
		}
	}
	return pooldir.SyncUp(dir)
}

// CopyTree copies the upper layer, sharing blocks where the file system can.
func (d driver) CopyTree(ctx context.Context, from, dir string, meta pooldir.Meta) error {
	if err := pooldir.WriteMeta(dir, meta); err != nil {
		return err
	}
	if err := copyFiles(ctx, filepath.Join(filepath.Dir(from), "upper"), filepath.Join(dir, "upper")); err != nil {
		return err
	}
	for _, name := range []string{"work", pooldir.TreeName} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	return pooldir.SyncUp(dir)
}

func (d driver) CopyDisk(ctx context.Context, from, dir string, meta pooldir.Meta) error {
	if d.reflink {
		return pooldir.ReflinkDisk(from, dir, meta)
	}
	if err := pooldir.WriteMeta(dir, meta); err != nil {
		return err
	}
	whole := filepath.Join(dir, filepath.Base(from))
	half := filepath.Join(dir, ".new."+filepath.Base(from))
	if err := copyFiles(ctx, from, half); err != nil {
		return err
	}
	if err := os.Rename(half, whole); err != nil {
		return err
	}
	return pooldir.SyncUp(dir)
}

// copyFiles copies a file, or a directory with all that is in it, as it is, and puts it on the disk.
func copyFiles(ctx context.Context, from, to string) error {
	if _, err := command.Run(ctx, nil, "cp", "-aT", "--reflink=auto", "--sparse=always", from, to); err != nil {
		return err
	}
	f, err := os.Open(to)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

func (d driver) CloneDisk(ctx context.Context, base, dir string, meta pooldir.Meta) error {
	if d.reflink {
		return pooldir.ReflinkDisk(base, dir, meta)
	}
	if err := pooldir.WriteMeta(dir, meta); err != nil {
		return err
	}
	half, whole := filepath.Join(dir, ".new."+pooldir.QCOW2Name), filepath.Join(dir, pooldir.QCOW2Name)
	_, err := command.Run(ctx, nil, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, half,
		strconv.FormatInt(int64(meta.Size), 10))
	if err != nil {
		return err
	}
	if err := os.Chmod(half, 0o600); err != nil {
		return err
	}
	if err := pooldir.Sync(half); err != nil {
		return err
	}
	if err := os.Rename(half, whole); err != nil {
		return err
	}
	return pooldir.SyncUp(dir)
}

func (d driver) Purge(_ context.Context, dir string) error { return os.RemoveAll(dir) }
