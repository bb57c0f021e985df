package container

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"polder/api"
)

// tree is the root of a VE whose content is hostile: its root user may have put any link, device or pipe anywhere. Every
// path is resolved inside the tree by the kernel, symlinks to absolute paths too.
type tree struct{ root *os.File }

// openTree opens the directory at dir as a tree. The caller closes it.
func openTree(dir string) (tree, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return tree{root}, err
}

func (t tree) Close() error { return t.root.Close() }

// open opens name, never anything outside the tree.
func (t tree) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(int(t.root.Fd()), name, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// has says whether there is something at name, links followed.
func (t tree) has(name string) bool {
	file, err := t.open(name, unix.O_PATH)
	if err == nil {
		_ = file.Close()
	}
	return err == nil
}

// read gives the content of the regular file name; one of more than limit bytes is api.Invalid.
func (t tree) read(name string, limit int64) ([]byte, error) {
	// Non-blocking, or a pipe in the file's place would hold us up.
	file, err := t.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, api.Errorf(api.Invalid, "%s is not a regular file", name)
	}
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(content)) > limit {
		return nil, api.Errorf(api.Invalid, "%s is larger than %d bytes", name, limit)
	}
	return content, err
}

// dir opens the directory name, making what is missing of it.
func (t tree) dir(name string) (*os.File, error) {
	dir, err := t.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, fs.ErrNotExist) || name == "/" || name == "." {
		return dir, err
	}
	parent, err := t.dir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), path.Base(name), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return t.open(name, unix.O_PATH|unix.O_DIRECTORY)
}

// remove removes name, which is no directory; a link is removed itself. One that is not there is no error.
func (t tree) remove(name string) error {
	dir, err := t.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		defer dir.Close()
		if err = unix.Unlinkat(int(dir.Fd()), path.Base(name), 0); err != nil {
			err = &fs.PathError{Op: "remove", Path: name, Err: err}
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// write makes name a regular file with the content and mode, whatever it was before; only a directory stays in the way.
// A file that is like that already is left alone.
func (t tree) write(name string, content []byte, mode uint32) error {
	dir, err := t.dir(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	at, base := int(dir.Fd()), path.Base(name)
	if same(at, base, content, mode) {
		return nil
	}
	const temporary = ".polder.new"
	if err := unix.Unlinkat(at, temporary, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: path.Join(path.Dir(name), temporary), Err: err}
	}
	fd, err := unix.Openat(at, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return &fs.PathError{Op: "create", Path: name, Err: err}
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = file.Write(content)
	if err == nil {
		err = file.Chmod(os.FileMode(mode)) // whatever the umask is
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = unix.Renameat(at, temporary, at, base)
	}
	if err != nil {
		_ = unix.Unlinkat(at, temporary, 0)
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// same says whether base in the directory at is a regular file, not a link, with this content and mode.
func same(at int, base string, content []byte, mode uint32) bool {
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	file := os.NewFile(uintptr(fd), base)
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(content)) || uint32(info.Mode().Perm()) != mode {
		return false
	}
	have, err := io.ReadAll(io.LimitReader(file, int64(len(content))+1))
	return err == nil && bytes.Equal(have, content)
}
