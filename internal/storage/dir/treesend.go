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
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
	"polder/internal/storage/pooldir"
)

// departures are the trees that are being sent, by directory.
type departures struct {
	mu sync.Mutex
	of map[string]*departure // guarded by mu; what is in it, by pooldir's lock of the directory
}

// departure is one tree. Lost with the process: the transfer begins again then.
type departure struct {
	round int
	acked *index // what the other end has, of the round before; nil: nothing
	sent  *index // of this round; nil: it was cut off
	// doubt has the paths that tries of this round spoke of: they may be there or not.
	doubt map[string]bool
}

func (d *departures) get(dir string) *departure {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.of[dir]
}

func (d *departures) set(dir string, v *departure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = map[string]*departure{}
	}
	d.of[dir] = v
	if v == nil {
		delete(d.of, dir)
	}
}

// begin prepares for round n, and says whether that may come now.
func (d *departure) begin(n int) bool {
	switch {
	case n == 0:
		*d = departure{doubt: map[string]bool{}}
	case n == d.round+1 && d.sent != nil:
		*d = departure{round: n, acked: d.sent, doubt: map[string]bool{}}
	case n != d.round:
		return false
	}
	d.sent = nil
	return true
}

// TransferFormat is storage.Sender's.
func (p *Pool) TransferFormat() string { return "dir-1" }

func (d driver) SendBaseTree(ctx context.Context, tree string, w io.Writer) error {
	root, err := os.Open(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = sendTree(ctx, root, &departure{doubt: map[string]bool{}}, true, w)
	return err
}

// SendTree writes what changed in the overlay's upper layer. It may be mounted and in use.
func (d driver) SendTree(ctx context.Context, dir, base string, t storage.Transfer, n int, w io.Writer) error {
	if base == "" {
		return api.Errorf(api.Precondition, "a tree of the dir driver is no more than what differs from its base, and the other pool has not the same one: fetch that first")
	}
	dep := d.departures.get(dir)
	if n == 0 {
		dep = &departure{}
		d.departures.set(dir, dep)
	}
	if dep == nil || !dep.begin(n) {
		return api.Errorf(api.Precondition, "round %d is not known here any more: begin with round 0", n-1)
	}
	root, err := os.Open(filepath.Join(dir, "upper"))
	if err != nil {
		return err
	}
	defer root.Close()
	dep.sent, err = sendTree(ctx, root, dep, t.Last, w)
	return err
}

// sendTree writes what differs from the round before.
func sendTree(ctx context.Context, root *os.File, dep *departure, last bool, w io.Writer) (*index, error) {
	var since unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &since); err != nil {
		return nil, err
	}
	if !last {
		// From here on a change to mapped memory shows in the file's ctime (see known.hot).
		if err := unix.Syncfs(int(root.Fd())); err != nil {
			return nil, fmt.Errorf("sync: %w", err)
		}
	}
	now, err := walk(ctx, root, since)
	if err != nil {
		return nil, err
	}
	s := &treeSender{ctx: ctx, root: root, departure: dep, now: now, last: last, out: bufio.NewWriterSize(w, 256<<10), leaders: map[uint64]*known{}}
	if s.acked == nil {
		s.acked = &index{byPath: map[string]*known{}}
	}
	if err := s.all(); err != nil {
		return nil, err
	}
	return now, s.out.Flush()
}

type treeSender struct {
	ctx  context.Context
	root *os.File
	*departure
	now  *index
	last bool
	out  *bufio.Writer
	// leaders are the names by which files with several are sent, by inode; the others are links to them.
	leaders map[uint64]*known
	fresh   map[uint64]bool // leaders that are made anew
}

func (s *treeSender) all() error {
	s.fresh = map[uint64]bool{}
	s.chooseLeaders()
	if err := writeEntry(s.out, entry{Do: doBegin, Size: treeVersion}); err != nil {
		return err
	}
	if err := s.removed(); err != nil {
		return err
	}
	// Links last: their target is there then.
	for _, links := range []bool{false, true} {
		for _, k := range s.now.list {
			leader := s.leaders[k.stat.Ino]
			if links != (leader != nil && leader != k) {
				continue
			}
			if err := s.element(k, leader, links); err != nil {
				return fmt.Errorf("%s: %w", k.path, err)
			}
		}
	}
	return writeEntry(s.out, entry{Do: doEnd})
}

// chooseLeaders prefers names that the other end has already.
func (s *treeSender) chooseLeaders() {
	for _, k := range s.now.list {
		if k.stat.Nlink < 2 || k.kind() == unix.S_IFDIR {
			continue
		}
		if l := s.leaders[k.stat.Ino]; l == nil || !s.hasInode(l) && s.hasInode(k) {
			s.leaders[k.stat.Ino] = k
		}
	}
}

// hasInode says whether the other end surely has the same file by that name.
func (s *treeSender) hasInode(k *known) bool {
	old := s.acked.byPath[k.path]
	return old != nil && !old.lost && !s.doubt[k.path] && old.stat.Ino == k.stat.Ino && old.kind() == k.kind()
}

// removed names what is there no more, not what is in a directory that is named.
func (s *treeSender) removed() error {
	var paths []string
	for _, k := range s.acked.list {
		paths = append(paths, k.path)
	}
	for at := range s.doubt {
		paths = append(paths, at)
	}
	slices.Sort(paths)
	removed := map[string]bool{}
	for _, at := range slices.Compact(paths) {
		if s.now.byPath[at] != nil {
			continue
		}
		s.doubt[at] = true
		removed[at] = true
		if up := path.Dir(at); removed[up] || s.now.byPath[up] != nil && s.now.byPath[up].kind() != unix.S_IFDIR {
			continue
		}
		if err := writeEntry(s.out, entry{Do: doRemove, Path: []byte(at)}); err != nil {
			return err
		}
	}
	return nil
}

// element writes what the other end lacks of one.
func (s *treeSender) element(k, leader *known, link bool) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if up := s.now.byPath[path.Dir(k.path)]; up.lost || leader != nil && leader.lost {
		return s.lost(k)
	}
	old := s.acked.byPath[k.path]
	has := s.hasInode(k)
	if link {
		k.sums = leader.sums // this name may be the leader of the next round
		if has && !s.fresh[k.stat.Ino] {
			return nil
		}
		s.doubt[k.path] = true
		return writeEntry(s.out, entry{Do: doLink, Path: []byte(k.path), Target: []byte(leader.path)})
	}
	if has && k.same(old) {
		k.sums = old.sums
		return nil
	}
	s.doubt[k.path] = true
	if leader != nil && (!has || k.kind() != unix.S_IFREG) {
		s.fresh[k.stat.Ino] = true
	}
	e := entry{
		Do: doMake, Path: []byte(k.path), Mode: k.stat.Mode, UID: k.stat.Uid, GID: k.stat.Gid,
		Second: k.stat.Mtim.Sec, Nano: k.stat.Mtim.Nsec,
	}
	err := pooldir.Beneath(s.root, k.path, func(parent int, base string) (err error) {
		if e.Xattrs, err = xattrsOf(parent, base); err != nil {
			return err
		}
		switch k.kind() {
		case unix.S_IFLNK:
			e.Target, err = grow(func(buf []byte) (int, error) {
				n, err := unix.Readlinkat(parent, base, buf)
				if err == nil && n == len(buf) {
					err = unix.ERANGE
				}
				return n, err
			})
		case unix.S_IFCHR, unix.S_IFBLK:
			e.Device = k.stat.Rdev
		}
		return err
	})
	if gone(err) || errors.Is(err, unix.EINVAL) {
		return s.lost(k)
	} else if err != nil {
		return err
	}
	if k.kind() == unix.S_IFREG {
		return s.file(k, old, has, e)
	}
	return writeEntry(s.out, e)
}

// lost is called for what went away meanwhile. The round after this one does not find it, and removes it.
func (s *treeSender) lost(k *known) error {
	k.lost = true
	return nil
}

func (s *treeSender) file(k, old *known, patch bool, e entry) error {
	f, err := pooldir.OpenBeneath(s.root, k.path, unix.O_RDONLY)
	if gone(err) || api.KindOf(err) == api.Invalid {
		return s.lost(k)
	} else if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Ino != k.stat.Ino {
		return s.lost(k)
	}
	var sums []pooldir.BlockSum
	if e.Size = st.Size; patch {
		e.Do, sums = doPatch, old.sums
	}
	if err := writeEntry(s.out, e); err != nil {
		return err
	}
	k.sums, err = pooldir.WriteBlocks(s.ctx, s.out, f, st.Size, sums)
	return err
}
