package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"polder/api"
)

const (
	poolFile = "pool.img"
	// DefaultPoolSize is the size of a host's pool; the file takes what is written to it.
	DefaultPoolSize = 20 * api.GiB
	leastPoolSize   = 256 * api.MiB
)

// makePoolFile makes a sparse file that the host makes a file system in when it starts.
func makePoolFile(path string, size api.Bytes) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() == 0 {
		err = f.Truncate(int64(size))
	}
	return errors.Join(err, f.Close())
}

// mountPool mounts the host's pool at target, below root. The loop device goes when the mount does, so that nothing
// stays when the host dies. A file without a file system gets one.
func mountPool(file, root, target string) error {
	loop, err := attachLoop(file)
	if err != nil {
		return fmt.Errorf("attach %s: %w", file, err)
	}
	defer loop.Close()
	made, err := hasFileSystem(file)
	if err != nil {
		return err
	}
	if !made {
		cmd := exec.Command("/usr/sbin/mkfs.btrfs", "--quiet", "--force", "--label", "pool", loop.Name())
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
		}
	}
	if err := unix.Mount(loop.Name(), filepath.Join(root, target), "btrfs", 0, ""); err != nil {
		return fmt.Errorf("mount the pool %s: %w", file, err)
	}
	return nil
}

// hasFileSystem says whether mkfs.btrfs got to its end: the super block is the last thing it writes.
func hasFileSystem(file string) (bool, error) {
	const at, magic = 64<<10 + 0x40, "_BHRfS_M" // btrfs on-disk format: superblock at 64 KiB, magic at 0x40
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	buf := make([]byte, len(magic))
	if _, err := f.ReadAt(buf, at); err != nil {
		return false, err
	}
	return string(buf) == magic, nil
}

// attachLoop attaches file to a free loop device that detaches itself when nothing uses it any more. The caller holds
// it by the file it gets.
func attachLoop(file string) (*os.File, error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody was faster
			return nil, err
		}
	}
}
