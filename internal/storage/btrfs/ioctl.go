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
	iocSend          = 0x40489426
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
	quotaTree         = 8
	firstFreeObjectID = 256 // inode of every subvolume's root
	rootRefKey        = 156
	groupRelationKey  = 246 // of two quota groups, in either direction
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

// createSubvolume makes an empty subvolume, in a quota group unless that is 0.
func createSubvolume(path string, group uint64) error {
	var args volArgs
	args.join(group)
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
	args.join(group)
	return args.snapshot(path)
}

// freeze makes path a read-only snapshot of an open subvolume, and commits the transaction.
func freeze(src *os.File, path string) error {
	args := volArgs{fd: int64(src.Fd()), flags: flagReadOnly}
	err := args.snapshot(path)
	runtime.KeepAlive(src)
	return err
}

// join puts what is made into a quota group, unless that is 0.
func (args *volArgs) join(group uint64) {
	if group == 0 {
		return
	}
	inherit := &qgroupInherit{groups: 1, group: group}
	args.flags |= flagQgroupInherit
	args.size = uint64(unsafe.Sizeof(*inherit))
	args.inherit = unsafe.Pointer(inherit)
}

func (args *volArgs) snapshot(path string) error {
	dir, err := at(path, args)
	if err != nil {
		return err
	}
	defer dir.Close()
	return ioctl(dir, iocSnapCreate, unsafe.Pointer(args))
}

func setReadOnly(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := subvolumeFlags(f)
	if err != nil {
		return err
	}
	return setFlags(f, flags|flagReadOnly)
}

func setFlags(f *os.File, flags uint64) error {
	return ioctl(f, iocSubvolSetFlag, unsafe.Pointer(&flags))
}

func subvolumeFlags(f *os.File) (flags uint64, err error) {
	err = ioctl(f, iocSubvolGetFlag, unsafe.Pointer(&flags))
	return flags, err
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
	var children []uint64
	err := eachRootRef(within, id, func(child uint64, _ []byte) error {
		children = append(children, child)
		return nil
	})
	return children, err
}

// eachRootRef calls f with each subvolume directly below one, and where it is: a struct btrfs_root_ref.
func eachRootRef(within *os.File, id uint64, f func(child uint64, ref []byte) error) error {
	if err := search(within, rootTree, id, rootRefKey, f); err != nil {
		return fmt.Errorf("list subvolumes below %d: %w", id, err)
	}
	return nil
}

// search calls f with the offset and content of each item of an object, of one type, in a tree.
func search(within *os.File, tree, object uint64, kind uint32, f func(offset uint64, item []byte) error) error {
	const headerSize = 32 // struct btrfs_ioctl_search_header: transid, object, offset u64; type, length u32
	args := searchArgs{
		tree: tree, minObject: object, maxObject: object, minType: kind, maxType: kind,
		maxOffset: ^uint64(0), maxTransid: ^uint64(0),
	}
	for {
		args.items = 1 << 12
		if err := ioctl(within, iocTreeSearch, unsafe.Pointer(&args)); err != nil {
			return err
		}
		if args.items == 0 {
			return nil
		}
		rest := args.buf[:]
		for range args.items {
			offset, length := binary.NativeEndian.Uint64(rest[16:]), binary.NativeEndian.Uint32(rest[28:])
			if err := f(offset, rest[headerSize:headerSize+length]); err != nil {
				return err
			}
			rest = rest[headerSize+length:]
			args.minOffset = offset + 1
		}
	}
}
