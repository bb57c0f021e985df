package btrfs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
	"polder/internal/storage/pooldir"
)

// arrivals are the volumes that are being received, by directory.
type arrivals struct {
	mu sync.Mutex
	of map[string]*arrival // guarded by mu; what is in it, by pooldir's lock of the directory
}

// arrival is one volume. Its subvolumes are written at .recv.ID, ID being the sender's. After each round but the last, .keep.ROUND.ID are snapshots
// of them: to go back to, and for the next round to share extents with.
type arrival struct {
	round    int // the last that came whole; -1: none
	touched  int // the last that was begun
	sections []section
}

func (a *arrivals) get(dir string) *arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.of[dir]
}

func (a *arrivals) set(dir string, v *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = map[string]*arrival{}
	}
	a.of[dir] = v
	if v == nil {
		delete(a.of, dir)
	}
}

func receivedPath(dir string, id uint64) string {
	return filepath.Join(dir, fmt.Sprintf(".recv.%d", id))
}

func keptPath(dir string, n int, id uint64) string {
	return filepath.Join(dir, fmt.Sprintf(".keep.%d.%d", n, id))
}

func (d driver) ReceiveBaseTree(ctx context.Context, path string, r io.Reader) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	a := applier{root: f}
	return a.apply(ctx, r)
}

// ReceiveTree applies a round to the subvolumes that will be the volume, and keeps snapshots of them.
func (d driver) ReceiveTree(ctx context.Context, dir, base string, t storage.Transfer, n int, r io.Reader) error {
	a := d.arrivals.get(dir)
	if n == 0 {
		a = &arrival{round: -1, touched: -1}
		if err := d.joinGroup(dir); err != nil {
			return err
		}
		d.arrivals.set(dir, a)
	} else if a == nil {
		return api.Errorf(api.Precondition, "round %d has not come: begin with round 0", n-1)
	}
	meta, err := pooldir.ReadMeta(dir)
	if err != nil {
		return err
	}
	if a.touched >= n { // a try of this round, whole or cut off
		if err := d.goBack(dir, a, n, meta); err != nil {
			return err
		}
	}
	if !t.Last {
		d.dropKept(dir, n-2, meta)
	}
	a.touched = n
	round := &receiving{driver: d, dir: dir, base: base, n: n, group: meta.QGroup}
	if err := round.read(ctx, bufio.NewReaderSize(r, 256<<10)); err != nil {
		return err
	}
	if !t.Last {
		for _, s := range round.sections {
			if err := snapshot(receivedPath(dir, s.ID), keptPath(dir, n, s.ID), meta.QGroup); err != nil {
				return fmt.Errorf("snapshot: %w", err)
			}
		}
	}
	a.round, a.sections = n, round.sections
	return nil
}

// joinGroup makes the quota group of a volume that is about to come. It has no limit before the volume is whole.
func (d driver) joinGroup(dir string) error {
	if !d.quota.on {
		return nil
	}
	meta, err := pooldir.ReadMeta(dir)
	if err != nil {
		return err
	}
	meta.QGroup = newGroup()
	if err := pooldir.WriteMeta(dir, meta); err != nil {
		return err
	}
	return d.quota.create(meta.QGroup)
}

// goBack makes what was received be as it was after round n-1.
func (d driver) goBack(dir string, a *arrival, n int, meta pooldir.Meta) error {
	d.dropKept(dir, n, meta)
	for _, s := range a.sections {
		kept, path := keptPath(dir, n-1, s.ID), receivedPath(dir, s.ID)
		if _, err := os.Lstat(kept); errors.Is(err, fs.ErrNotExist) {
			continue // it came with a round that is to come again
		} else if err != nil {
			return err
		}
		// What it has stays in the quota group, as the snapshot has it too.
		if err := d.destroyIfThere(path, 0); err != nil {
			return err
		}
		if err := snapshot(kept, path, meta.QGroup); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
	}
	a.round = n - 1
	return nil
}

// dropKept removes the snapshots of a round. It is no matter if they stay.
func (d driver) dropKept(dir string, n int, meta pooldir.Meta) {
	found, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf(".keep.%d.*", n)))
	if err != nil {
		return
	}
	for _, path := range found {
		_ = d.destroyAt(path, meta.QGroup)
	}
}

// receiving is one round.
type receiving struct {
	driver
	dir, base string
	n         int
	group     uint64
	sections  []section
}

// mostSubvolumes in one volume is far above what anyone has.
const mostSubvolumes = 10000

func (r *receiving) read(ctx context.Context, in *bufio.Reader) error {
	for {
		s, err := readSection(in)
		if err != nil {
			return err
		}
		if s.End {
			if len(r.sections) == 0 {
				return api.Errorf(api.Invalid, "there is no subvolume in the stream")
			}
			return nil
		}
		if (s.Parent == 0) != (len(r.sections) == 0) || len(r.sections) > mostSubvolumes {
			return api.Errorf(api.Invalid, "the stream's subvolumes are not in order")
		}
		if err := r.subvolume(ctx, s, in); err != nil {
			return fmt.Errorf("subvolume %q: %w", s.Path, err)
		}
		r.sections = append(r.sections, s)
	}
}

func readSection(in *bufio.Reader) (section, error) {
	var s section
	line, err := in.ReadSlice('\n')
	if err != nil {
		return s, pooldir.CutOff(err)
	}
	if err := json.Unmarshal(line, &s); err != nil {
		return s, api.Errorf(api.Invalid, "the stream is not one of ours: %w", err)
	}
	if s.Version != sectionVersion {
		return s, api.Errorf(api.Unsupported, "the stream has version %d, this Polder knows %d", s.Version, sectionVersion)
	}
	return s, nil
}

func (r *receiving) subvolume(ctx context.Context, s section, in io.Reader) error {
	path := receivedPath(r.dir, s.ID)
	parent := ""
	switch {
	case s.Full:
		// Of a try that was cut off, or one that had the same number before.
		if err := r.destroyIfThere(path, r.group); err != nil {
			return err
		}
		if err := createSubvolume(path, r.group); err != nil {
			return fmt.Errorf("make subvolume: %w", err)
		}
	case r.n == 0 && s.Parent == 0 && r.base != "":
		parent = r.base
		if err := snapshot(parent, path, r.group); err != nil {
			return fmt.Errorf("snapshot %s: %w", parent, err)
		}
	default:
		parent = keptPath(r.dir, r.n-1, s.ID)
	}
	a, err := openApplier(path, parent)
	if err != nil {
		return err
	}
	defer a.close()
	return a.apply(ctx, in)
}

func openApplier(path, parent string) (*applier, error) {
	root, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	a := &applier{root: root}
	if parent == "" {
		return a, nil
	}
	if a.parent, err = os.Open(parent); err != nil {
		root.Close()
		return nil, err
	}
	return a, nil
}

func (a *applier) close() {
	a.root.Close()
	if a.parent != nil {
		a.parent.Close()
	}
}

// FinishTree puts the nested subvolumes into their places, then the volume into its own. A snapshot of each makes all durable: it writes that
// subvolume's data out, no other's, and commits.
func (d driver) FinishTree(ctx context.Context, dir string, t storage.Transfer) error {
	a := d.arrivals.get(dir)
	if a == nil || a.round < 0 || a.touched != a.round {
		return api.Errorf(api.Precondition, "its last round has not come whole: send that again")
	}
	meta, err := pooldir.ReadMeta(dir)
	if err != nil {
		return err
	}
	if err := d.setLimit(ctx, dir, t, &meta); err != nil {
		return err
	}
	flushed := filepath.Join(dir, ".keep.flushed")
	places := map[uint64]string{0: "", a.sections[0].ID: receivedPath(dir, a.sections[0].ID)}
	for _, s := range a.sections[1:] {
		if err := d.flush(receivedPath(dir, s.ID), flushed, meta); err != nil {
			return err
		}
		if places[s.ID], err = place(dir, s, places[s.Parent]); err != nil {
			return fmt.Errorf("put the subvolume %q into its place: %w", s.Path, err)
		}
	}
	for _, s := range a.sections {
		if s.ReadOnly { // not before all are in their places
			if err := setReadOnly(places[s.ID]); err != nil {
				return err
			}
		}
	}
	root := filepath.Join(dir, pooldir.TreeName)
	if err := os.Rename(places[a.sections[0].ID], root); err != nil {
		return err
	}
	if err := d.flush(root, flushed, meta); err != nil {
		return err
	}
	d.arrivals.set(dir, nil)
	return nil
}

// setLimit is what CloneTree does about the limit of a volume.
func (d driver) setLimit(ctx context.Context, dir string, t storage.Transfer, meta *pooldir.Meta) error {
	if meta.QGroup == 0 || t.Size == 0 {
		return nil
	}
	meta.Limit = t.Size
	if t.Base != "" {
		base, err := d.Base(ctx, t.Base, storage.Tree)
		if err != nil {
			return err
		}
		parent, err := pooldir.ReadMeta(filepath.Dir(base))
		if err != nil {
			return err
		}
		meta.Limit = max(t.Size-parent.Size, 1)
	}
	if err := pooldir.WriteMeta(dir, *meta); err != nil {
		return err
	}
	return d.quota.limit(meta.QGroup, meta.Limit)
}

// flush makes what is in a subvolume durable.
func (d driver) flush(path, temporary string, meta pooldir.Meta) error {
	if err := d.destroyIfThere(temporary, meta.QGroup); err != nil { // of a call that was cut off
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := freeze(f, temporary); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return d.destroyAt(temporary, 0)
}

func (d driver) destroyIfThere(path string, group uint64) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return d.destroyAt(path, group)
}

// place moves a nested subvolume into the one that it belongs to, whose directory does not seem changed afterwards.
func place(dir string, s section, parent string) (string, error) {
	if parent == "" {
		return "", api.Errorf(api.Invalid, "it is in one that did not come")
	}
	root, err := os.Open(parent)
	if err != nil {
		return "", err
	}
	defer root.Close()
	err = pooldir.Beneath(root, string(s.Path), func(into int, base string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(into, "", &st, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
		from := receivedPath(dir, s.ID)
		if err := unix.Renameat2(unix.AT_FDCWD, from, into, base, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		times := []unix.Timespec{st.Atim, st.Mtim}
		return unix.UtimesNanoAt(unix.AT_FDCWD, pooldir.ByHandle(into, "."), times, 0)
	})
	return filepath.Join(parent, string(s.Path)), err
}

// EndTree forgets what was received, and gives the sender's volume its limit back.
func (d driver) EndTree(_ context.Context, dir string, meta pooldir.Meta) error {
	d.arrivals.set(dir, nil)
	return d.narrow(meta)
}

// Drop removes a subvolume beside a volume.
func (d driver) Drop(_ context.Context, path string, meta pooldir.Meta) error {
	if err := d.destroyAt(path, meta.QGroup); err != nil {
		return err
	}
	return os.RemoveAll(path)
}
