package image

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// readLimit bounds what is read of a text file in a tree.
const readLimit = 1 << 20

// openInTree opens a file of a tree that may come from anywhere: names and symbolic links are resolved as if the tree were
// the root, so that nothing outside is reached.
func openInTree(tree, name string, flags int) (*os.File, error) {
	dir, err := unix.Open(tree, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: tree, Err: err}
	}
	defer unix.Close(dir)
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func statInTree(tree, name string) (fs.FileInfo, error) {
	f, err := openInTree(tree, name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

func isFile(tree, name string) bool {
	info, err := statInTree(tree, name)
	return err == nil && info.Mode().IsRegular()
}

// readInTree reads a regular file, at most its first megabyte.
func readInTree(tree, name string) ([]byte, error) {
	// A device or a FIFO must not be opened for reading, not even to look what it is.
	if info, err := statInTree(tree, name); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	f, err := openInTree(tree, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, readLimit))
}

// listInTree lists a directory; one that can't be read is empty.
func listInTree(tree, name string) []string {
	f, err := openInTree(tree, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, err := f.Readdirnames(10000)
	if err != nil {
		return nil
	}
	return names
}
