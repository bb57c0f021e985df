package image

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// whiteoutPrefix begins the name of a member that hides what lower layers have (OCI image-spec, layer.md).
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// openDir opens a directory of the tree. "" is the root.
func (u *unpacker) openDir(name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	if u.layer {
		how.Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	}
	if name == "" {
		name = "."
	}
	for {
		fd, err := unix.Openat2(u.root, name, &how)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue // something was renamed meanwhile
		case errors.Is(err, unix.EXDEV):
			return -1, api.Errorf(api.Invalid, "%q leads through a link out of the root", name)
		case errors.Is(err, unix.ELOOP):
			return -1, api.Errorf(api.Invalid, "%q leads through a loop of links", name)
		case errors.Is(err, unix.ENOTDIR):
			return -1, api.Errorf(api.Invalid, "%q is not a directory", name)
		}
		return fd, err
	}
}

// openParent opens the directory that the next member is made in, and makes it where the archive did not. The handle is
// the unpacker's own.
func (u *unpacker) openParent(name string) (int, error) {
	if u.parent >= 0 && u.parentName == name {
		return u.parent, nil
	}
	u.forgetParent()
	fd, err := u.openDir(name)
	if errors.Is(err, unix.ENOENT) {
		fd, err = u.makeDirs(name)
	}
	if err != nil {
		return -1, err
	}
	u.parent, u.parentName = fd, name
	return fd, nil
}

func (u *unpacker) forgetParent() {
	if u.parent >= 0 {
		unix.Close(u.parent)
	}
	u.parent, u.parentName = -1, ""
}

// makeDirs makes the directories of a path that are not there.
func (u *unpacker) makeDirs(name string) (int, error) {
	at, err := u.openDir("")
	if err != nil {
		return -1, err
	}
	parts := strings.Split(name, "/")
	for i, part := range parts {
		whole := strings.Join(parts[:i+1], "/")
		next, err := u.openDir(whole)
		if errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(at, part, 0o755); err == nil {
				next, err = u.openDir(whole)
			} else if errors.Is(err, unix.EEXIST) {
				err = api.Errorf(api.Invalid, "%q is a link to nowhere", whole)
			}
		}
		unix.Close(at)
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

// remove removes what has a name, with all that is in it.
func (u *unpacker) remove(parent int, base string) error {
	err := unix.Unlinkat(parent, base, 0)
	if errors.Is(err, unix.EISDIR) {
		if err = unix.Unlinkat(parent, base, unix.AT_REMOVEDIR); errors.Is(err, unix.ENOTEMPTY) {
			return removeAll(parent, base)
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// removeAll removes a directory with all that is in it, without following links.
func removeAll(parent int, base string) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), base)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := unix.Unlinkat(fd, name, 0)
		if errors.Is(err, unix.EISDIR) {
			err = removeAll(fd, name)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

// whiteout hides what lower layers have: one name, or all of a directory.
func (u *unpacker) whiteout(dir, base string) error {
	u.forgetParent() // it may go
	fd, err := u.openDir(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if base != whiteoutOpaque {
		hidden := strings.TrimPrefix(base, whiteoutPrefix)
		if hidden == "" || hidden == "." || hidden == ".." {
			return api.Errorf(api.Invalid, "not a valid whiteout")
		}
		return u.hide(fd, dir, hidden)
	}
	readable, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(readable), dir)
	defer f.Close()
	return u.hideAll(f, dir)
}

// hide removes what lower layers have under a name, and leaves what this layer made.
func (u *unpacker) hide(parent int, dir, base string) error {
	name := strings.TrimPrefix(dir+"/"+base, "/")
	if !u.made[name] {
		return u.remove(parent, base)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // a file of this layer
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	return u.hideAll(f, name)
}

func (u *unpacker) hideAll(f *os.File, dir string) error {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := u.hide(int(f.Fd()), dir, name); err != nil {
			return err
		}
	}
	return nil
}
