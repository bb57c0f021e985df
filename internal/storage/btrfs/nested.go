package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"polder/internal/storage/pooldir"
)

// nested is a subvolume inside a volume: one that was made within the VE, which a snapshot leaves out.
type nested struct {
	id, parent uint64
	path       string // from the parent's root
	readOnly   bool
	open       *os.File
}

// nestedIn finds and opens all subvolumes below an open one, parents before children. One that goes away or moves meanwhile is left out: the round after
// this one has it.
func nestedIn(root *os.File, id uint64) ([]nested, error) {
	links, err := childLinks(root, id)
	if err != nil {
		return nil, err
	}
	var list []nested
	for _, n := range links {
		f, err := openNested(root, n)
		if err != nil {
			continue
		}
		flags, err := subvolumeFlags(f)
		if err != nil {
			f.Close()
			continue
		}
		n.readOnly, n.open = flags&flagReadOnly != 0, f
		list = append(list, n)
		below, err := nestedIn(f, n.id)
		list = append(list, below...)
		if err != nil {
			closeNested(list)
			return nil, err
		}
	}
	return list, nil
}

// unsealNested makes all subvolumes below an open one writable: from a read-only one, none inside could be removed.
func unsealNested(root *os.File, id uint64) error {
	list, err := nestedIn(root, id)
	if err != nil {
		return err
	}
	defer closeNested(list)
	for _, n := range list {
		if n.readOnly {
			if err := setFlags(n.open, 0); err != nil {
				return fmt.Errorf("make subvolume %q writable: %w", n.path, err)
			}
		}
	}
	return nil
}

// copyNested takes snapshots of subvolumes that a snapshot at to, of the subvolume id, has left out; in it they are empty directories.
func copyNested(to string, id uint64, list []nested, group uint64) error {
	at := map[uint64]*os.File{}
	defer func() {
		for _, f := range at {
			f.Close()
		}
	}()
	var err error
	if at[id], err = os.Open(to); err != nil {
		return err
	}
	for _, n := range list {
		if at[n.id], err = copyInto(at[n.parent], n, group); err != nil {
			return fmt.Errorf("snapshot of the subvolume %q: %w", n.path, err)
		}
	}
	for i := len(list) - 1; i >= 0; i-- { // children first: nothing is made in a read-only one
		if n := list[i]; n.readOnly {
			if err := setFlags(at[n.id], flagReadOnly); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyInto takes the snapshot of one, in the place of the empty directory that stands for it.
func copyInto(parent *os.File, n nested, group uint64) (*os.File, error) {
	dir, name := filepath.Split(n.path)
	place, err := openBeneath(parent, filepath.Join(".", dir))
	if err != nil {
		return nil, err
	}
	defer place.Close()
	if err := unix.Unlinkat(int(place.Fd()), name, unix.AT_REMOVEDIR); err != nil {
		return nil, err
	}
	args := volArgs{fd: int64(n.open.Fd())}
	args.join(group)
	copy(args.name[:], name)
	if err := ioctl(place, iocSnapCreate, unsafe.Pointer(&args)); err != nil {
		return nil, err
	}
	return openBeneath(place, name)
}

func openBeneath(parent *os.File, path string) (*os.File, error) {
	fd, err := unix.Openat2(int(parent.Fd()), path, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: pooldir.Resolve})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func closeNested(list []nested) {
	for _, n := range list {
		n.open.Close()
	}
}

// openNested opens what is at the place where a nested subvolume should be, if it is that one.
func openNested(parent *os.File, n nested) (*os.File, error) {
	f, err := openBeneath(parent, n.path)
	if err != nil {
		return nil, err
	}
	id, err := subvolumeID(f)
	if err == nil && id != n.id {
		err = errors.New("another subvolume is there")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// childLinks lists the subvolumes directly below one, with their paths in it.
func childLinks(within *os.File, id uint64) ([]nested, error) {
	var links []nested
	err := eachRootRef(within, id, func(child uint64, ref []byte) error {
		// struct btrfs_root_ref: dirid, sequence u64; length of the name u16; name
		if len(ref) < 18 {
			return nil
		}
		dir, length := binary.LittleEndian.Uint64(ref), int(binary.LittleEndian.Uint16(ref[16:]))
		if len(ref) < 18+length {
			return nil
		}
		path, err := pathOf(within, id, dir)
		if errors.Is(err, unix.ENOENT) {
			return nil
		} else if err != nil {
			return err
		}
		links = append(links, nested{id: child, parent: id, path: path + string(ref[18:18+length])})
		return nil
	})
	return links, err
}

// pathOf is the path of a directory in a subvolume, with a slash at its end; "": its root.
func pathOf(within *os.File, tree, object uint64) (string, error) {
	args := struct {
		tree, object uint64
		name         [4080]byte
	}{tree: tree, object: object}
	if err := ioctl(within, iocInoLookup, unsafe.Pointer(&args)); err != nil {
		return "", err
	}
	name, _, _ := strings.Cut(string(args.name[:]), "\x00")
	return name, nil
}
