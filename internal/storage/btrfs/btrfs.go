// Package btrfs keeps a pool in a directory of a btrfs file system.
//
// A base tree is a read-only subvolume and a volume of it a snapshot; a disk is a raw file and a volume of it shares its
// extents. Disks are overwritten in place, and so without the file system's checksums.
//
// Trees' limits are kept, and use is counted, by simple quotas (Linux 6.7): all that a VE writes is counted in a quota
// group of level 1 of its own, so that subvolumes made inside the VE count too. What a snapshot shares with its base is
// the base's.
//
// Clone and Delete use ioctls: starting the btrfs tool costs as much as the snapshot itself. A snapshot commits the
// running transaction, so a volume that was returned is durable; Delete waits for no disk, and the kernel gives the space
// back within half a minute.
//
// It needs root. Bookkeeping, concurrency and crash safety are package pooldir's.
package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
	"polder/internal/storage/pooldir"
)

// Pool is a storage.Pool.
type Pool struct {
	*pooldir.Pool
	quota    quota
	arrivals arrivals
}

var _ storage.Pool = (*Pool)(nil)

// Is says whether path is on a btrfs file system.
func Is(path string) (bool, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return s.Type == unix.BTRFS_SUPER_MAGIC, nil
}

// Open opens the pool at path, a directory on btrfs, and turns simple quotas on where the kernel has them.
func Open(_ context.Context, name, path string) (*Pool, error) {
	ok, err := Is(path)
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", name, err)
	}
	if !ok {
		return nil, api.Errorf(api.Unsupported, "open pool %q: %s is not on a btrfs file system: use the dir driver, or mkfs.btrfs", name, path)
	}
	p := &Pool{}
	if p.Pool, err = pooldir.New(name, path, driver{p}); err != nil {
		return nil, err
	}
	p.quota = openQuota(p.Path())
	return p, nil
}

// Driver is "btrfs".
func (p *Pool) Driver() string { return "btrfs" }

// Enforces says whether simple quotas are on.
func (p *Pool) Enforces(context.Context) (bool, string) { return p.quota.on, p.quota.why }

// driver makes trees and copies for pooldir.
type driver struct{ *Pool }

func (d driver) NeedsBase(storage.Kind) bool { return false }

func (d driver) Complete(*storage.Volume, string, pooldir.Meta) {}

func (d driver) MakeTree(path string) error {
	if err := createSubvolume(path, 0); err != nil {
		return fmt.Errorf("make subvolume %s: %w", path, err)
	}
	return os.Chmod(path, 0o755)
}

func (d driver) Seal(path string, kind storage.Kind) error {
	if kind == storage.Disk {
		return os.Chmod(path, 0o400)
	}
	if err := setReadOnly(path); err != nil {
		return fmt.Errorf("make subvolume %s read-only: %w", path, err)
	}
	return nil
}

func (d driver) CloneTree(_ context.Context, base, dir string, meta pooldir.Meta) error {
	if d.quota.on && meta.Size > 0 {
		parent, err := pooldir.ReadMeta(filepath.Dir(base))
		if err != nil {
			return err
		}
		// The group counts only what the volume does not share with its base. The kernel reads a limit of 0 as none.
		meta.Limit = max(meta.Size-parent.Size, 1)
	}
	meta, err := d.writeMeta(dir, meta)
	if err != nil {
		return err
	}
	return d.snapshot(base, filepath.Join(dir, pooldir.TreeName), meta.QGroup)
}

// CopyTree takes a snapshot of the volume, and of each subvolume inside. Its limit is what the volume had left.
func (d driver) CopyTree(_ context.Context, from, dir string, meta pooldir.Meta) error {
	parent := meta
	meta.QGroup, meta.Limit = 0, 0
	meta, err := d.writeMeta(dir, meta)
	if err != nil {
		return err
	}
	root, err := os.Open(from)
	if err != nil {
		return err
	}
	defer root.Close()
	id, err := subvolumeID(root)
	if err != nil {
		return err
	}
	within, err := nestedIn(root, id)
	if err != nil {
		return err
	}
	defer closeNested(within)
	half, whole := filepath.Join(dir, ".new."+pooldir.TreeName), filepath.Join(dir, pooldir.TreeName)
	if err := d.snapshot(from, half, meta.QGroup); err != nil {
		return err
	}
	if err := copyNested(half, id, within, meta.QGroup); err != nil {
		return err
	}
	if parent.QGroup != 0 && parent.Limit > 0 && meta.QGroup != 0 {
		used, err := d.quota.used(parent.QGroup) // after the snapshot: until then it lacks what is not written yet
		if err != nil {
			return err
		}
		meta.Limit = max(parent.Limit-used, 1)
		if err := errors.Join(pooldir.WriteMeta(dir, meta), d.quota.limit(meta.QGroup, meta.Limit)); err != nil {
			return err
		}
	}
	if err := os.Rename(half, whole); err != nil {
		return err
	}
	return pooldir.SyncUp(dir)
}

// writeMeta writes the meta of a new volume, with a quota group of its own where there are quotas.
func (d driver) writeMeta(dir string, meta pooldir.Meta) (pooldir.Meta, error) {
	if !d.quota.on {
		meta.Limit = 0
		return meta, pooldir.WriteMeta(dir, meta)
	}
	// Written down before it is made: a group that nobody knows of would stay for ever.
	meta.QGroup = newGroup()
	if err := pooldir.WriteMeta(dir, meta); err != nil {
		return meta, err
	}
	if err := d.quota.create(meta.QGroup); err != nil {
		return meta, err
	}
	if meta.Limit > 0 {
		return meta, d.quota.limit(meta.QGroup, meta.Limit)
	}
	return meta, nil
}

func (d driver) snapshot(from, to string, group uint64) error {
	if err := snapshot(from, to, group); err != nil {
		return fmt.Errorf("snapshot %s: %w", from, err)
	}
	return nil
}

func (d driver) CloneDisk(_ context.Context, base, dir string, meta pooldir.Meta) error {
	return pooldir.ReflinkDisk(base, dir, meta)
}

func (d driver) CopyDisk(_ context.Context, from, dir string, meta pooldir.Meta) error {
	return pooldir.ReflinkDisk(from, dir, meta)
}

// Purge removes all subvolumes in dir with those nested in them, the quota group, then the rest.
func (d driver) Purge(_ context.Context, dir string) error {
	meta, err := pooldir.ReadMeta(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if meta.QGroup != 0 {
		// A full group would refuse even the little that deleting writes.
		if err := d.quota.limit(meta.QGroup, 0); err != nil && !noGroup(err) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.Name() == "meta" { // last: it names the group
			continue
		}
		if err := d.destroyAt(path, meta.QGroup); err != nil {
			return fmt.Errorf("delete subvolumes of %s: %w", path, err)
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if meta.QGroup != 0 {
		if err := d.quota.remove(meta.QGroup); err != nil && !noGroup(err) {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// destroyAt deletes the subvolume at path, if it is one, and all that are nested in it.
func (d driver) destroyAt(path string, group uint64) error {
	isSubvolume, err := isSubvolumeRoot(path)
	if err != nil || !isSubvolume {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	id, err := subvolumeID(f)
	if err == nil {
		err = unsealNested(f, id)
	}
	f.Close() // before it is destroyed
	if err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close()
	return d.destroy(parent, id, group)
}

// destroy deletes subvolumes by id, the innermost first: no name made inside a VE is followed. Each leaves the quota
// group before, as the kernel drops it later and the group can go only when none is in it.
func (d driver) destroy(within *os.File, id, group uint64) error {
	children, err := childSubvolumes(within, id)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := d.destroy(within, child, group); err != nil {
			return err
		}
	}
	if group != 0 {
		if err := d.quota.leave(id, group); err != nil && !noGroup(err) {
			return err
		}
	}
	return destroySubvolume(within, id)
}
