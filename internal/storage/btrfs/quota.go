package btrfs

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
	"polder/internal/storage"
	"polder/internal/storage/pooldir"
)

// quota is the simple quotas of one file system.
type quota struct {
	on    bool
	why   string // not on
	path  string // a directory of the file system
	sysfs string // of its quota groups
}

// openQuota turns simple quotas on, if it may.
func openQuota(path string) quota {
	q := quota{path: path}
	f, err := os.Open(path)
	if err != nil {
		q.why = err.Error()
		return q
	}
	defer f.Close()
	var info struct {
		_    [2]uint64
		fsid uuid.UUID
		_    [992]byte
	}
	if err := ioctl(f, iocFSInfo, unsafe.Pointer(&info)); err != nil {
		q.why = fmt.Sprintf("the file system of %s does not say its id: %v", path, err)
		return q
	}
	q.sysfs = filepath.Join("/sys/fs/btrfs", info.fsid.String(), "qgroups")
	mode := q.mode()
	if mode == "" {
		args := [2]uint64{enableSimpleQuota}
		err := ioctl(f, iocQuotaCtl, unsafe.Pointer(&args))
		// Another pool's daemon may have been quicker.
		if mode = q.mode(); mode == "" && err != nil {
			q.why = fmt.Sprintf("the kernel has no simple quotas for btrfs (%v): they need Linux 6.7", err)
			return q
		}
	}
	if mode == "" {
		q.why = "simple quotas were turned on, but " + q.sysfs + " does not show them: mount -t sysfs sysfs /sys"
		return q
	}
	if mode != "squota" {
		q.why = fmt.Sprintf("the file system has quotas of another kind (%q), which Polder does not use: btrfs quota disable %s", mode, path)
		return q
	}
	q.on = true
	return q
}

// mode of the quotas that are on: "squota", "qgroup" (or "inconsistent"); "": none.
func (q quota) mode() string {
	text, err := os.ReadFile(filepath.Join(q.sysfs, "mode"))
	if err == nil {
		return strings.TrimSpace(string(text))
	}
	if _, err := os.Stat(q.sysfs); err == nil {
		return "qgroup" // a kernel before 6.7
	}
	return ""
}

// newGroup chooses a quota group of level 1. Its number is random, as pools on one file system know nothing of each other.
func newGroup() uint64 {
	var random [8]byte
	_, _ = rand.Read(random[:])
	return 1<<48 | binary.NativeEndian.Uint64(random[:])>>16 // level, number
}

// noGroup says whether an operation on a group failed because it is not there, or because quotas were turned off.
func noGroup(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTCONN) }

func (q quota) create(group uint64) error {
	args := [2]uint64{1, group}
	if err := q.ioctl(iocQgroupCreate, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("make quota group: %w", err)
	}
	return nil
}

// leave takes a subvolume out of a group.
func (q quota) leave(subvolume, group uint64) error {
	args := [3]uint64{0, subvolume, group} // a subvolume's own group has level 0 and its id
	if err := q.ioctl(iocQgroupAssign, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("take subvolume %d out of its quota group: %w", subvolume, err)
	}
	return nil
}

// remove removes a group. Subvolumes that are gone may be in it still: of such whose extents others shared, the kernel keeps the count.
func (q quota) remove(group uint64) error {
	f, err := os.Open(q.path)
	if err != nil {
		return err
	}
	defer f.Close()
	var members []uint64
	err = search(f, quotaTree, group, groupRelationKey, func(member uint64, _ []byte) error {
		members = append(members, member)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list quota group: %w", err)
	}
	for _, member := range members {
		if err := q.leave(member, group); err != nil && !noGroup(err) {
			return err
		}
	}
	args := [2]uint64{0, group}
	if err := ioctl(f, iocQgroupCreate, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("remove quota group: %w", err)
	}
	return nil
}

// limit sets a group's limit in bytes; 0: none.
func (q quota) limit(group uint64, limit api.Bytes) error {
	args := struct{ group, flags, referenced, exclusive, reservedReferenced, reservedExclusive uint64 }{
		group: group, flags: limitReferenced, referenced: uint64(limit),
	}
	if limit == 0 {
		args.referenced = ^uint64(0) // the kernel's "clear it"
	}
	if err := q.ioctl(iocQgroupLimit, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("limit quota group: %w", err)
	}
	return nil
}

func (q quota) ioctl(request uintptr, arg unsafe.Pointer) error {
	f, err := os.Open(q.path)
	if err != nil {
		return err
	}
	defer f.Close()
	return ioctl(f, request, arg)
}

// used is what the subvolumes in a group have written and still have.
func (q quota) used(group uint64) (api.Bytes, error) { return q.number(group, "referenced") }

// limitOf is a group's limit.
func (q quota) limitOf(group uint64) (api.Bytes, error) { return q.number(group, "max_referenced") }

func (q quota) number(group uint64, file string) (api.Bytes, error) {
	name := fmt.Sprintf("%d_%d", group>>48, group&(1<<48-1))
	text, err := os.ReadFile(filepath.Join(q.sysfs, name, file))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return api.Bytes(n), err
}

// Usage is a disk's extents that nothing else shares; of a tree, what its quota group counts, or, without quotas, what
// the btrfs tool finds by looking at every file (seconds).
func (p *Pool) Usage(ctx context.Context, id string) (api.Bytes, error) {
	v, err := p.Volume(ctx, id)
	if err != nil {
		return 0, err
	}
	used, err := p.usage(ctx, v)
	if errors.Is(err, unix.ENOENT) {
		// Deleted meanwhile?
		if _, gone := p.Volume(ctx, id); gone != nil {
			return 0, gone
		}
	}
	if err != nil {
		return 0, fmt.Errorf("usage of volume %s of pool %q: %w", id, p.Name(), err)
	}
	return used, nil
}

func (p *Pool) usage(ctx context.Context, v storage.Volume) (api.Bytes, error) {
	if v.Kind == storage.Disk {
		return pooldir.Unshared(v.Path)
	}
	meta, err := pooldir.ReadMeta(filepath.Dir(v.Path))
	if err != nil {
		return 0, err
	}
	if meta.QGroup != 0 && p.quota.on {
		return p.quota.used(meta.QGroup)
	}
	out, err := command.Run(ctx, nil, "btrfs", "filesystem", "du", "--summarize", "--raw", v.Path)
	if err != nil {
		return 0, err
	}
	return parseDU(out)
}

// parseDU reads the exclusive bytes from the last line of "btrfs filesystem du --summarize --raw":
//
//	Total   Exclusive  Set shared  Filename
//	 4096        4096           0  path
func parseDU(out []byte) (api.Bytes, error) {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if len(fields) < 4 {
		return 0, fmt.Errorf("btrfs filesystem du: unknown output %q", out)
	}
	n, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("btrfs filesystem du: unknown output %q", out)
	}
	return api.Bytes(n), nil
}
