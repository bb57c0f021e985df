package pooldir

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fsNoCOW is FS_NOCOW_FL of linux/fs.h: btrfs overwrites such a file in place, without checksums.
const fsNoCOW = 0x00800000

// setNoCOW makes new files in a directory, or an empty file, overwritten in place on btrfs. Elsewhere it does nothing.
//
// Disks of VMs are: written at random places they would go to pieces, and pages that a VM changes while they are written,
// which no ordinary program does, would fail their checksum when they are read.
func setNoCOW(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &s); err != nil || s.Type != unix.BTRFS_SUPER_MAGIC {
		return err
	}
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("flags of %s: %w", path, err)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|fsNoCOW); err != nil {
		return fmt.Errorf("set flags of %s: %w", path, err)
	}
	return nil
}

func isNoCOW(f *os.File) bool {
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&fsNoCOW != 0
}

// CanReflink tries whether files in dir can share extents. It leaves nothing behind.
func CanReflink(dir string) bool {
	temp := func() (*os.File, error) { return os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600) }
	from, err := temp()
	if err != nil {
		return false
	}
	defer from.Close()
	to, err := temp()
	if err != nil {
		return false
	}
	defer to.Close()
	if _, err := from.Write(make([]byte, 4096)); err != nil {
		return false
	}
	return unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil
}

// ReflinkDisk makes dir/disk.raw share all extents of the raw disk at base, grown to the size in meta; it appears at
// once and is durable.
func ReflinkDisk(base, dir string, meta Meta) error {
	if err := WriteMeta(dir, meta); err != nil {
		return err
	}
	half, whole := filepath.Join(dir, ".new."+RawName), filepath.Join(dir, RawName)
	if err := reflink(base, half, int64(meta.Size)); err != nil {
		return err
	}
	if err := os.Rename(half, whole); err != nil {
		return err
	}
	return SyncUp(dir)
}

// SyncUp makes the names in dir, and its own, durable.
func SyncUp(dir string) error {
	if err := Sync(dir); err != nil {
		return err
	}
	return Sync(filepath.Dir(dir))
}

func reflink(from, to string, size int64) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	// btrfs shares extents only between files that both are, or both are not, overwritten in place.
	if isNoCOW(src) {
		if err := setNoCOW(to); err != nil {
			return err
		}
	}
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return fmt.Errorf("reflink %s to %s: %w", from, to, err)
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	return dst.Sync()
}
