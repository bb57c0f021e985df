package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"polder/internal/storage/pooldir"
)

// known is an element of a tree as it was at one round.
type known struct {
	path string
	stat unix.Stat_t
	// hot: it may have changed since without its ctime telling. Memory that a program has mapped from a file, and changed, changes the times of the
	// file only once between two writes to the disk.
	hot  bool
	lost bool               // it went away while it was to be sent
	sums []pooldir.BlockSum // of a file that was sent
}

func (k *known) kind() uint32 { return k.stat.Mode & unix.S_IFMT }

// same says whether the element is as it was.
func (k *known) same(old *known) bool {
	return old != nil && !old.hot && k.stat.Ino == old.stat.Ino && k.stat.Ctim == old.stat.Ctim && k.stat.Mode == old.stat.Mode
}

// index is a tree as it was at one round, in order: what is in a directory comes after it.
type index struct {
	list   []*known
	byPath map[string]*known
}

// walk looks at a tree that may be in use. No symbolic link is followed: whoever uses the tree may put one anywhere, at any time.
func walk(ctx context.Context, root *os.File, hotSince unix.Timespec) (*index, error) {
	w := walker{ctx: ctx, hotSince: hotSince, index: &index{byPath: map[string]*known{}}}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, err
	}
	w.add(".", st)
	return w.index, w.dir(root, "")
}

type walker struct {
	ctx      context.Context
	hotSince unix.Timespec
	index    *index
}

func (w *walker) add(path string, st unix.Stat_t) {
	k := &known{path: path, stat: st}
	k.hot = st.Mode&unix.S_IFMT == unix.S_IFREG && (st.Ctim.Sec > w.hotSince.Sec || st.Ctim.Sec == w.hotSince.Sec && st.Ctim.Nsec >= w.hotSince.Nsec)
	w.index.list = append(w.index.list, k)
	w.index.byPath[path] = k
}

func (w *walker) dir(f *os.File, prefix string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if gone(err) {
		return nil
	} else if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return fmt.Errorf("%s: %w", path.Join(prefix, name), err)
		}
		at := path.Join(prefix, name)
		w.add(at, st)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		fd, err := unix.Openat(int(f.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if gone(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		sub := os.NewFile(uintptr(fd), at)
		err = w.dir(sub, at)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// gone is what the lookup of something says that was removed or replaced meanwhile: the next round has it.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ESTALE)
}
