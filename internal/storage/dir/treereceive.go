package dir

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
	"polder/internal/storage/pooldir"
)

// halfUpper is the upper layer of a volume that is on its way.
const halfUpper = ".recv.upper"

// arrivals are, for each volume that is being received, the times that directories are to have in the end: making something in one changes it. Guarded by mu; what is in
// an element, by pooldir's lock of the directory.
type arrivals struct {
	mu sync.Mutex
	of map[string]map[string]unix.Timespec
}

func (a *arrivals) times(dir string) map[string]unix.Timespec {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = map[string]map[string]unix.Timespec{}
	}
	if a.of[dir] == nil {
		a.of[dir] = map[string]unix.Timespec{}
	}
	return a.of[dir]
}

func (a *arrivals) forget(dir string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.of, dir)
}

func (d driver) ReceiveBaseTree(ctx context.Context, path string, r io.Reader) error {
	return receiveTree(ctx, path, map[string]unix.Timespec{}, r) // AddBase syncs
}

// ReceiveTree applies a round to the upper layer that the volume will have.
func (d driver) ReceiveTree(ctx context.Context, dir, base string, _ storage.Transfer, n int, r io.Reader) error {
	if base == "" {
		return api.Errorf(api.Precondition, "its base is not here: fetch that first")
	}
	upper := filepath.Join(dir, halfUpper)
	if n == 0 {
		if err := os.Mkdir(upper, 0o700); err != nil {
			return err
		}
	}
	times := d.arrivals.times(dir)
	if err := receiveTree(ctx, upper, times, r); err != nil {
		return err
	}
	clear(times)
	return nil
}

func receiveTree(ctx context.Context, path string, times map[string]unix.Timespec, r io.Reader) error {
	root, err := os.Open(path)
	if err != nil {
		return err
	}
	defer root.Close()
	t := &treeReceiver{ctx: ctx, root: root, in: bufio.NewReaderSize(r, 256<<10), times: times}
	if err := t.all(); err != nil {
		return err
	}
	if err := t.restoreTimes(); err != nil {
		return err
	}
	return t.sync()
}

type treeReceiver struct {
	ctx   context.Context
	root  *os.File
	in    *bufio.Reader
	times map[string]unix.Timespec
	files []string // that were written
}

func (t *treeReceiver) all() error {
	e, err := readEntry(t.in)
	if err != nil {
		return err
	}
	if e.Do != doBegin || e.Size != treeVersion {
		return api.Errorf(api.Unsupported, "the stream begins with %q, version %d; this Polder knows version %d", e.Do, e.Size, treeVersion)
	}
	for {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		e, err := readEntry(t.in)
		if err != nil {
			return err
		}
		if e.Do == doEnd {
			return nil
		}
		if err := t.apply(e); err != nil {
			return fmt.Errorf("%s %q: %w", e.Do, e.Path, err)
		}
	}
}

func (t *treeReceiver) apply(e entry) error {
	at := string(e.Path)
	if at != path.Clean(at) || at == "" || at == ".." || path.IsAbs(at) {
		return api.Errorf(api.Invalid, "the path leads out")
	}
	if at == "." {
		return t.rootDir(e)
	}
	err := pooldir.Beneath(t.root, at, func(parent int, base string) error {
		if e.Do == doPatch {
			return t.content(parent, base, e)
		}
		if err := t.remember(path.Dir(at), parent); err != nil {
			return err
		}
		switch e.Do {
		case doRemove:
			return removeAt(parent, base)
		case doMake:
			return t.make(parent, base, e)
		case doLink:
			if err := removeAt(parent, base); err != nil {
				return err
			}
			return pooldir.Beneath(t.root, string(e.Target), func(from int, fromBase string) error {
				return unix.Linkat(from, fromBase, parent, base, 0)
			})
		}
		return api.Errorf(api.Invalid, "Polder does not know it")
	})
	if e.Do == doRemove && gone(err) { // a try of this round has removed what it was in
		return nil
	}
	return err
}

// remember keeps the time of a directory that is about to be changed, unless one is kept.
func (t *treeReceiver) remember(dir string, fd int) error {
	if _, ok := t.times[dir]; ok {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	t.times[dir] = st.Mtim
	return nil
}

func (t *treeReceiver) rootDir(e entry) error {
	if e.Do != doMake || e.Mode&unix.S_IFMT != unix.S_IFDIR {
		return api.Errorf(api.Invalid, "the root of a tree is a directory")
	}
	t.times["."] = unix.Timespec{Sec: e.Second, Nsec: e.Nano}
	return setMeta(int(t.root.Fd()), ".", e)
}

// make makes an element anew.
func (t *treeReceiver) make(parent int, base string, e entry) error {
	kind := e.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		t.times[string(e.Path)] = unix.Timespec{Sec: e.Second, Nsec: e.Nano}
		var st unix.Stat_t
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return setMeta(parent, base, e)
		}
	}
	if err := removeAt(parent, base); err != nil {
		return err
	}
	var err error
	switch kind {
	case unix.S_IFDIR:
		err = unix.Mkdirat(parent, base, 0o700)
	case unix.S_IFLNK:
		err = unix.Symlinkat(string(e.Target), parent, base)
	case unix.S_IFCHR, unix.S_IFBLK:
		err = unix.Mknodat(parent, base, kind|0o600, int(e.Device))
	case unix.S_IFIFO, unix.S_IFSOCK:
		err = unix.Mknodat(parent, base, kind|0o600, 0)
	case unix.S_IFREG:
		var fd int
		if fd, err = unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err == nil {
			unix.Close(fd)
			return t.content(parent, base, e)
		}
	default:
		return api.Errorf(api.Invalid, "its mode is %o", e.Mode)
	}
	if err != nil {
		return err
	}
	return setMeta(parent, base, e)
}

// content reads a file's blocks.
func (t *treeReceiver) content(parent int, base string, e entry) error {
	fd, err := unix.Openat(parent, base, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), string(e.Path))
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || e.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.Join(err, api.Errorf(api.Invalid, "it is no regular file"))
	}
	if err := pooldir.ReadBlocks(t.ctx, t.in, f, e.Size); err != nil {
		return err
	}
	t.files = append(t.files, string(e.Path))
	return setMeta(parent, base, e)
}

// setMeta sets all that an element has besides content, in the order in which one setting does not undo another.
func setMeta(parent int, base string, e entry) error {
	if err := unix.Fchownat(parent, base, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := setXattrs(pooldir.ByHandle(parent, base), e.Xattrs); err != nil {
		return err
	}
	if e.Mode&unix.S_IFMT != unix.S_IFLNK {
		fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), e.Mode&0o7777)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	mtime := unix.Timespec{Sec: e.Second, Nsec: e.Nano}
	return unix.UtimesNanoAt(parent, base, []unix.Timespec{mtime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

func setXattrs(path string, want []xattr) error {
	names, err := xattrNames(path)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, x := range want {
		wanted[string(x.Name)] = true
	}
	for _, name := range names {
		if !wanted[name] {
			if err := unix.Lremovexattr(path, name); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("remove attribute %s: %w", name, err)
			}
		}
	}
	for _, x := range want {
		if err := unix.Lsetxattr(path, string(x.Name), x.Value, 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", x.Name, err)
		}
	}
	return nil
}

// removeAt removes an element, with all below; one that is not there is no error.
func removeAt(parent int, base string) error {
	err := unix.Unlinkat(parent, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeAt(fd, name); err != nil {
			return err
		}
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

func (t *treeReceiver) restoreTimes() error {
	for dir, mtime := range t.times {
		err := pooldir.Beneath(t.root, dir, func(parent int, base string) error {
			return unix.UtimesNanoAt(parent, base, []unix.Timespec{mtime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
		})
		if err != nil && !gone(err) { // removed later in the round
			return fmt.Errorf("times of %q: %w", dir, err)
		}
	}
	return nil
}

// fewFiles are quicker synced one by one than with all that others have written to the file system.
const fewFiles = 16

func (t *treeReceiver) sync() error {
	if len(t.files) > fewFiles {
		return unix.Syncfs(int(t.root.Fd()))
	}
	for _, path := range t.files {
		f, err := pooldir.OpenBeneath(t.root, path, unix.O_RDONLY)
		if gone(err) {
			continue
		} else if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
	}
	return t.root.Sync()
}

// FinishTree makes the volume: root, the place for the mount, comes last.
func (d driver) FinishTree(_ context.Context, dir string, _ storage.Transfer) error {
	if err := os.Rename(filepath.Join(dir, halfUpper), filepath.Join(dir, "upper")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, name := range []string{"work", pooldir.TreeName} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	d.arrivals.forget(dir)
	if err := pooldir.Sync(dir); err != nil {
		return err
	}
	return pooldir.Sync(filepath.Dir(dir))
}

// EndTree forgets what the two ends remember.
func (d driver) EndTree(_ context.Context, dir string, _ pooldir.Meta) error {
	d.departures.set(dir, nil)
	d.arrivals.forget(dir)
	return nil
}

// Drop removes what is kept beside a volume.
func (d driver) Drop(_ context.Context, path string, _ pooldir.Meta) error { return os.RemoveAll(path) }
