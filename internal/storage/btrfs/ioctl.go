package btrfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers of linux/btrfs.h: direction, size of the argument, 0x94, number.
const (
	iocTreeSearch    = 0xd0009411
	iocInoLookup     = 0xd0009412
	iocSnapCreate    = 0x50009417
	iocSubvolCreate  = 0x50009418
	iocSubvolGetFlag = 0x80089419
	iocSubvolSetFlag = 0x4008941a
	iocFSInfo        = 0x8400941f
	iocQuotaCtl      = 0xc0109428
	iocQgroupAssign  = 0x40189429
	iocQgroupCreate  = 0x4010942a
	iocQgroupLimit   = 0x8030942b
	iocSnapDestroy   = 0x5000943f
)

// Of linux/btrfs.h and linux/btrfs_tree.h.
const (
	flagReadOnly      = 1 << 1 // BTRFS_SUBVOL_RDONLY
	flagQgroupInherit = 1 << 2 // BTRFS_SUBVOL_QGROUP_INHERIT
	flagByID          = 1 << 4 // BTRFS_SUBVOL_SPEC_BY_ID
	rootTree          = 1
	firstFreeObjectID = 256 // inode of every subvolume's root
	rootRefKey        = 156
	enableSimpleQuota = 4
	limitReferenced   = 1
)

// volArgs is struct btrfs_ioctl_vol_args_v2.
type volArgs struct {
	fd      int64
	transid uint64
	flags   uint64
	size    uint64
	inherit unsafe.Pointer // *qgroupInherit
	_       [2]uint64
	name    [4040]byte // or, first, the subvolume's id
}

// qgroupInherit is struct btrfs_qgroup_inherit with one group.
type qgroupInherit struct {
	flags, groups, refCopies, exclCopies uint64
	limit                                [5]uint64
	group                                uint64
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}

// at opens path's directory and puts its last element into args.
func at(path string, args *volArgs) (*os.File, error) {
	name := filepath.Base(path)
	if len(name) > 255 {
		return nil, syscall.ENAMETOOLONG
	}
	copy(args.name[:], name)
	return os.Open(filepath.Dir(path))
}

func createSubvolume(path string) error {
	var args volArgs
	dir, err := at(path, &args)
	if err != nil {
		return err
	}
	defer dir.Close()
	return ioctl(dir, iocSubvolCreate, unsafe.Pointer(&args))
}

// snapshot makes path a writable snapshot of the subvolume at source, in a quota group unless that is 0, and commits
// the transaction.
func snapshot(source, path string, group uint64) error {
	src, err := os.Open(source)
	if err != nil {
		return err
	}
	defer src.Close()
	args := volArgs{fd: int64(src.Fd())}
	if group != 0 {
		inherit := &qgroupInherit{groups: 1, group: group}
		args.flags |= flagQgroupInherit
		args.size = uint64(unsafe.Sizeof(*inherit))
		args.inherit = unsafe.Pointer(inherit)
	}
	dir, err := at(path, &args)
	if err != nil {
		return err
	}
	defer dir.Close()
	return ioctl(dir, iocSnapCreate, unsafe.Pointer(&args))
}

func setReadOnly(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var flags uint64
	if err := ioctl(f, iocSubvolGetFlag, unsafe.Pointer(&flags)); err != nil {
		return err
	}
	flags |= flagReadOnly
	return ioctl(f, iocSubvolSetFlag, unsafe.Pointer(&flags))
}

// destroySubvolume deletes the subvolume with this id, anywhere in the file system of within.
func destroySubvolume(within *os.File, id uint64) error {
	args := volArgs{flags: flagByID}
	binary.NativeEndian.PutUint64(args.name[:], id)
	if err := ioctl(within, iocSnapDestroy, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("delete subvolume %d: %w", id, err)
	}
	return nil
}

func isSubvolumeRoot(path string) (bool, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return false, err
	}
	return stat.Mode&unix.S_IFMT == unix.S_IFDIR && stat.Ino == firstFreeObjectID, nil
}

func subvolumeID(f *os.File) (uint64, error) {
	args := struct {
		tree, object uint64
		name         [4080]byte
	}{object: firstFreeObjectID}
	err := ioctl(f, iocInoLookup, unsafe.Pointer(&args))
	return args.tree, err
}

// searchArgs is struct btrfs_ioctl_search_args.
type searchArgs struct {
	tree                   uint64
	minObject, maxObject   uint64
	minOffset, maxOffset   uint64
	minTransid, maxTransid uint64
	minType, maxType       uint32
	items                  uint32
	_                      uint32
	_                      [4]uint64
	buf                    [3992]byte
}

// childSubvolumes lists the subvolumes directly below one.
func childSubvolumes(within *os.File, id uint64) ([]uint64, error) {
	const headerSize = 32 // struct btrfs_ioctl_search_header: transid, object, offset u64; type, length u32
	var children []uint64
	args := searchArgs{
		tree: rootTree, minObject: id, maxObject: id, minType: rootRefKey, maxType: rootRefKey,
		maxOffset: ^uint64(0), maxTransid: ^uint64(0),
	}
	for {
		args.items = 1 << 12
		if err := ioctl(within, iocTreeSearch, unsafe.Pointer(&args)); err != nil {
			return nil, fmt.Errorf("list subvolumes below %d: %w", id, err)
		}
		if args.items == 0 {
			return children, nil
		}
		rest := args.buf[:]
		for range args.items {
			children = append(children, binary.NativeEndian.Uint64(rest[16:]))
			rest = rest[headerSize+binary.NativeEndian.Uint32(rest[28:]):]
		}
		args.minOffset = children[len(children)-1] + 1
	}
}
