package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// device is a character device of a host.
type device struct {
	name         string
	major, minor uint32
	perm         uint32
	optional     bool // only when the machine has it
}

// devices are what a host has of its machine. Numbers are the kernel's (Documentation/admin-guide/devices.txt), save
// where the machine's own node says otherwise: some are given out at boot.
var devices = []device{
	{name: "null", major: 1, minor: 3, perm: 0o666},
	{name: "zero", major: 1, minor: 5, perm: 0o666},
	{name: "full", major: 1, minor: 7, perm: 0o666},
	{name: "random", major: 1, minor: 8, perm: 0o666},
	{name: "urandom", major: 1, minor: 9, perm: 0o666},
	{name: "kmsg", major: 1, minor: 11, perm: 0o640},
	{name: "tty", major: 5, minor: 0, perm: 0o666},
	{name: "net/tun", major: 10, minor: 200, perm: 0o666},
	{name: "fuse", major: 10, minor: 229, perm: 0o666},
	{name: "btrfs-control", major: 10, minor: 234, perm: 0o660},
	{name: "mapper/control", major: 10, minor: 236, perm: 0o600},
	{name: "loop-control", major: 10, minor: 237, perm: 0o660},
	{name: "kvm", major: 10, minor: 232, perm: 0o666, optional: true},
	{name: "vhost-net", major: 10, minor: 238, perm: 0o666, optional: true},
	{name: "vhost-vsock", major: 10, minor: 241, perm: 0o666, optional: true},
	{name: "vsock", perm: 0o666, optional: true},
	{name: "userfaultfd", perm: 0o600, optional: true},
}

const (
	loopMajor = 7
	// loopNodes is how many loop devices a host has nodes for: no udev makes them.
	loopNodes = 256
)

// makeDevices fills a host's /dev, an empty tmpfs, at dir; /dev is still the machine's.
func makeDevices(dir string) error {
	for _, d := range devices {
		number := unix.Mkdev(d.major, d.minor)
		var st unix.Stat_t
		if err := unix.Stat("/dev/"+d.name, &st); err == nil {
			number = st.Rdev
		} else if d.optional {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, d.name)), 0o755); err != nil {
			return err
		}
		if err := makeNode(filepath.Join(dir, d.name), unix.S_IFCHR, d.perm, number); err != nil {
			return err
		}
	}
	for n := range uint32(loopNodes) {
		if err := makeNode(filepath.Join(dir, "loop"+strconv.Itoa(int(n))), unix.S_IFBLK, 0o660, unix.Mkdev(loopMajor, n)); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func makeNode(path string, kind, perm uint32, number uint64) error {
	if err := unix.Mknod(path, kind|perm, int(number)); err != nil && !errors.Is(err, fs.ErrExist) {
		return &fs.PathError{Op: "mknod", Path: path, Err: err}
	}
	return os.Chmod(path, os.FileMode(perm))
}
