package pooldir

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"polder/api"
)

// Resolve are the rules by which names from a stream are looked up.
const Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// OpenBeneath opens a regular file.
func OpenBeneath(root *os.File, path string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{Flags: flags | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: Resolve})
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, errors.Join(err, api.Errorf(api.Invalid, "%q is no regular file", path))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Beneath calls f with a path's parent directory, opened inside root, and its last element.
func Beneath(root *os.File, path string, f func(parent int, base string) error) error {
	dir, base := filepath.Split(path)
	if base == "." && dir == "" {
		return f(int(root.Fd()), base)
	}
	if base == "." || base == ".." {
		return api.Errorf(api.Invalid, "the path %q leads out", path)
	}
	if base == "" && path != "" {
		return api.Errorf(api.Invalid, "the path %q names nothing", path)
	}
	if dir == "" {
		return f(int(root.Fd()), base)
	}
	fd, err := unix.Openat2(int(root.Fd()), dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: Resolve})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd, base)
}

// ByHandle is a path to an element of an open directory, for calls that take no handle.
func ByHandle(parent int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(parent) + "/" + base
}
