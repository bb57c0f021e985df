package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"polder/api"
)

// localSide is this machine. What it receives comes from a VE that may mean harm: every path is opened below the
// destination with os.Root, which follows no link out of it.
type localSide struct{ warn func(string) }

func (l *localSide) look(_ context.Context, path string) (found, error) {
	parent, parentErr := os.Stat(filepath.Dir(path))
	f := found{path: path, hasParent: parentErr == nil && parent.IsDir()}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, api.Errorf(api.Internal, "cp: %w", err)
	}
	f.exists, f.dir = true, info.IsDir()
	if f.path, err = filepath.EvalSymlinks(path); err != nil {
		return f, api.Errorf(api.Internal, "cp: %w", err)
	}
	f.size = info.Size()
	if f.dir {
		f.size = treeSize(f.path)
	}
	return f, nil
}

// treeSize is only for the progress: what cannot be read is met again by send.
func treeSize(dir string) (size int64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { //nolint:errcheck // see above
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				size += info.Size()
			}
		}
		return nil
	})
	return size
}

func (l *localSide) send(ctx context.Context, path string, dir bool, w io.Writer) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(path, file)
		if err != nil {
			return err
		}
		if !dir {
			name = filepath.Base(path)
		}
		return l.sendFile(tw, file, name, d)
	})
	err = errors.Join(err, tw.Close())
	if ctx.Err() != nil {
		return api.Errorf(api.Cancelled, "cp: cancelled; the copy is not whole")
	}
	if err != nil && !errors.Is(err, errStopped) {
		return api.Errorf(api.Internal, "cp: read %s: %w", path, err)
	}
	return err
}

func (l *localSide) sendFile(tw *tar.Writer, file, name string, d fs.DirEntry) error {
	kind := d.Type()
	if !kind.IsRegular() && !kind.IsDir() && kind != fs.ModeSymlink {
		l.warn("left out: " + file + " is neither a file, a directory nor a link")
		return nil
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	var link string
	if kind == fs.ModeSymlink {
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	// It will be root's: this machine's users mean nothing in the VE, and neither do times beyond the second.
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname, h.Format = name, 0, 0, "", "", tar.FormatGNU
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if err := tw.WriteHeader(h); err != nil || !kind.IsRegular() {
		return err
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := io.Copy(tw, io.LimitReader(in, h.Size))
	if err == nil && n < h.Size {
		return fmt.Errorf("%s became shorter while it was read", file)
	}
	return err
}

func (l *localSide) receive(ctx context.Context, t target, dir bool, r io.Reader) error {
	var err error
	if dir {
		err = l.receiveTree(ctx, filepath.Join(t.dir, t.name), r)
	} else {
		err = eachEntry(r, false, func(_ string, h *tar.Header, content io.Reader) error {
			return writeFile(filepath.Join(t.dir, t.name), content, plainMode(h))
		})
	}
	var known *api.Error
	if err != nil && !errors.As(err, &known) {
		return api.Errorf(api.Internal, "cp: %w", err)
	}
	return err
}

// writeFile makes the file whole or not at all; something there that is no plain file (a terminal, a pipe) is written to.
func writeFile(path string, content io.Reader, mode fs.FileMode) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, content)
		return errors.Join(err, file.Close())
	}
	if whole, err := filepath.EvalSymlinks(path); err == nil {
		path = whole // a link to a file stays one
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".polder-cp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // after the rename it is not there
	_, err = io.Copy(tmp, content)
	if err := errors.Join(err, tmp.Chmod(mode&^0o022), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// plainMode is an entry's mode without setuid and the like, which must not come out of a VE.
func plainMode(h *tar.Header) fs.FileMode { return fs.FileMode(h.Mode) & 0o777 }

// dirEntry is a directory whose mode and time are set when all in it is there.
type dirEntry struct {
	name string
	mode fs.FileMode
	time time.Time
}

func (l *localSide) receiveTree(ctx context.Context, dir string, r io.Reader) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var dirs []dirEntry
	err = eachEntry(r, true, func(name string, h *tar.Header, content io.Reader) error {
		if err := ctx.Err(); err != nil {
			return api.Errorf(api.Cancelled, "cp: cancelled; the copy is not whole")
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, dirEntry{name, plainMode(h), h.ModTime})
		}
		return l.place(root, name, h, content)
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		finishDir(root, dirs[i])
	}
	return err
}

// finishDir narrows a directory to its own mode: what the umask has taken away stays away.
func finishDir(root *os.Root, d dirEntry) {
	if info, err := root.Lstat(d.name); err == nil && info.IsDir() {
		root.Chmod(d.name, info.Mode().Perm()&(d.mode|0o200)) //nolint:errcheck // the content is there
		root.Chtimes(d.name, d.time, d.time)                  //nolint:errcheck // the content is there
	}
}

// place makes one entry below root.
func (l *localSide) place(root *os.Root, name string, h *tar.Header, content io.Reader) error {
	if name == "." {
		return nil
	}
	if err := makeWay(root, name, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, plainMode(h)|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg:
		file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, plainMode(h)|0o200)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, content)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		return root.Chtimes(name, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		old, err := entryName(h.Linkname)
		if err != nil {
			return err
		}
		return root.Link(old, name)
	default:
		l.warn(fmt.Sprintf("left out: %s is neither a file, a directory nor a link", name))
		return nil
	}
}

// makeWay makes the entry's parents, and removes what is in its place unless both are directories.
func makeWay(root *os.Root, name string, dir bool) error {
	if parent := filepath.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir() && dir:
		return nil
	case info.IsDir():
		return api.Errorf(api.Precondition, "cp: %s is a directory here and none in the source", filepath.Join(root.Name(), name))
	}
	return root.Remove(name)
}
