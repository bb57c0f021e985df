package pooldir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"polder/api"
)

// Size is the length of a file, or what the files of a tree take on disk (hard links once).
func Size(path string) (api.Bytes, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !info.IsDir() {
		return api.Bytes(info.Size()), nil
	}
	return TreeUsage(context.Background(), path)
}

// TreeUsage is what the files of a tree take on disk, hard links once. Files that vanish meanwhile are no error.
func TreeUsage(ctx context.Context, path string) (api.Bytes, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total api.Bytes
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("stat of %s has an unknown form", info.Name())
		}
		if stat.Nlink > 1 && !d.IsDir() {
			key := inode{stat.Dev, stat.Ino}
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		total += api.Bytes(stat.Blocks) * 512
		return nil
	})
	return total, err
}

// Of linux/fiemap.h.
const (
	fiemapIoctl  = 0xc020660b // FS_IOC_FIEMAP
	extentLast   = 0x1
	extentShared = 0x2000
	fiemapBatch  = 256
)

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	start, length           uint64
	flags, mapped, count, _ uint32
	extents                 [fiemapBatch]fiemapExtent
}

// Unshared is how many bytes of a file are in extents that no other file has.
func Unshared(path string) (api.Bytes, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var total api.Bytes
	m := fiemap{length: ^uint64(0), count: fiemapBatch}
	for {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapIoctl, uintptr(unsafe.Pointer(&m))); errno != 0 {
			return 0, fmt.Errorf("extents of %s: %w", path, errno)
		}
		if m.mapped == 0 {
			return total, nil
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&extentShared == 0 {
				total += api.Bytes(e.length)
			}
		}
		last := m.extents[m.mapped-1]
		if last.flags&extentLast != 0 {
			return total, nil
		}
		m.start = last.logical + last.length
		m.length = ^uint64(0) - m.start
	}
}
