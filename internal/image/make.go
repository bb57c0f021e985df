package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/storage"
	"polder/internal/store"
)

// making is what the steps of image.build, image.import and image.publish tell each other.
type making struct {
	Alias string
	// Replace lets the alias move from the image that has it.
	Replace bool
	Build   *api.ImageBuildRequest  `json:",omitempty"`
	Import  *api.ImageImportRequest `json:",omitempty"`
	Source  *Source                 `json:",omitempty"`
	// Spool is the directory with the file that is imported, in "payload".
	Spool string `json:",omitempty"`

	Format api.ImageFormat // of what is in the working directory: FormatAuto for a tree
	Epoch  time.Time
	Image  api.Image
	Tree   bool
	Disk   bool
}

type makingRun = operation.Run[making]

// work is the operation's directory: all that it makes outside the pool.
func (l *Library) work(r *makingRun) string { return filepath.Join(l.Staging, r.ID) }

// makingSteps are those that all ways share: what the first ones found becomes bases, then a record.
func (l *Library) makingSteps(first ...operation.Step[making]) []operation.Step[making] {
	return append(first, []operation.Step[making]{
		{Name: "tree", Do: l.addTree, Undo: l.removeBases},
		{Name: "disk", Do: l.addDisk, Undo: l.removeBases},
		{Name: "publish", Do: l.publish},
	}...)
}

// room is how much may be written into the pool: not all, since others write too.
func (l *Library) room(ctx context.Context) (int64, error) {
	_, free, err := l.Pool.Space(ctx)
	if err != nil {
		return 0, err
	}
	return max(0, int64(free)-int64(free)/32), nil
}

// addTree fills the tree base.
func (l *Library) addTree(ctx context.Context, r *makingRun) error {
	s := &r.State
	if err := l.claim(s.Image.Digest, r.ID, beingMade); err != nil {
		return err
	}
	if err := l.checkAliasFree(ctx, s); err != nil {
		return err
	}
	if s.Format == api.FormatQcow2 || s.Format == api.FormatRaw {
		return nil
	}
	room, err := l.room(ctx)
	if err != nil {
		return err
	}
	limits := unpackLimits{Bytes: room, Entries: maxEntries}
	err = l.Pool.AddBase(ctx, baseID(s.Image.Digest), storage.Tree, func(ctx context.Context, path string) error {
		return l.fillTree(ctx, r, path, limits)
	})
	if err != nil {
		return err
	}
	return l.describe(ctx, s)
}

func (l *Library) fillTree(ctx context.Context, r *makingRun, path string, limits unpackLimits) error {
	payload := l.payload(r)
	switch r.State.Format {
	case api.FormatAuto:
		if r.State.Source != nil {
			return l.withSystem(ctx, r, func(root string, o packing) error { return copyTree(ctx, root, path, limits, o) })
		}
		return copyTree(ctx, filepath.Join(l.work(r), "root"), path, limits, packing{latest: r.State.Epoch, progress: func(n int64) { r.Progress(n, 0, "bytes") }})
	case api.FormatTar:
		f, err := os.Open(payload)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = unpackTar(ctx, l.counted(f, r), path, limits)
		return err
	case api.FormatSquashFS:
		content, err := squashTar(ctx, payload)
		if err != nil {
			return err
		}
		defer content.Close()
		_, err = unpackTar(ctx, content, path, limits)
		return err
	case api.FormatOCI:
		lay, err := openLayout(payload)
		if err != nil || lay == nil {
			return errors.Join(err, errors.New("the layout is gone"))
		}
		defer lay.Close()
		image, err := lay.image()
		if err != nil {
			return err
		}
		return lay.unpack(ctx, image, path, limits, func(done int64) { r.Progress(done, image.size(), "bytes") })
	default:
		return api.Errorf(api.Internal, "image format %q", r.State.Format)
	}
}

// counted reports how much of a file was read.
func (l *Library) counted(f *os.File, r *makingRun) io.Reader {
	var size int64
	if info, err := f.Stat(); err == nil {
		size = info.Size()
	}
	return &countingReader{r: f, seen: func(n int64) { r.Progress(n, size, "bytes") }}
}

// copyTree copies a tree through its canonical archive: what a digest was made of is what arrives.
func copyTree(ctx context.Context, from, to string, limits unpackLimits, o packing) error {
	out, in := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := packTree(ctx, from, in, o)
		in.CloseWithError(err)
		return err
	})
	g.Go(func() error {
		_, err := unpackTar(ctx, out, to, limits)
		out.CloseWithError(err)
		return err
	})
	return g.Wait()
}

// describe fills in what the tree says about itself, and which models can run it.
func (l *Library) describe(ctx context.Context, s *making) error {
	path, err := l.Pool.Base(ctx, baseID(s.Image.Digest), storage.Tree)
	if err != nil {
		return err
	}
	if s.Source != nil {
		if err := checkIdentity(path, false); err != nil {
			return err
		}
	}
	sys, err := inspect(path)
	if err != nil {
		return err
	}
	size, err := treeSize(path)
	if err != nil {
		return err
	}
	i := &s.Image
	i.OS, i.Release, i.Arch, i.Kernel, i.CloudInit = sys.OS, sys.Release, sys.Arch, sys.Kernel.Version, sys.CloudInit
	i.SizeBytes = api.Bytes(size)
	if i.Description == "" {
		i.Description = sys.Pretty
	}
	bootable := sys.Init && sys.Kernel.Image != "" && sys.Kernel.Initrd != "" && i.Config == nil
	switch {
	case bootable:
		i.Models = []api.Model{api.Container, api.VM}
	case sys.Init || i.Config != nil:
		i.Models = []api.Model{api.Container}
	default:
		return api.Errorf(api.Invalid, "there is no system in it: no /sbin/init, and no command to run")
	}
	s.Tree, s.Disk = true, bootable
	return nil
}

// addDisk fills the disk base: derived from the tree, or converted from a foreign disk.
func (l *Library) addDisk(ctx context.Context, r *makingRun) error {
	s := &r.State
	if err := l.claim(s.Image.Digest, r.ID, beingMade); err != nil {
		return err
	}
	foreign := s.Format == api.FormatQcow2 || s.Format == api.FormatRaw
	if !s.Disk && !foreign {
		return nil
	}
	if err := os.MkdirAll(l.work(r), 0o700); err != nil {
		return err
	}
	err := l.Pool.AddBase(ctx, baseID(s.Image.Digest), storage.Disk, func(ctx context.Context, path string) error {
		if foreign {
			return convertDisk(ctx, l.payload(r), s.Format, path)
		}
		tree, err := l.Pool.Base(ctx, baseID(s.Image.Digest), storage.Tree)
		if err != nil {
			return err
		}
		return deriveDisk(ctx, tree, path, l.work(r), int64(s.Image.SizeBytes))
	})
	if err != nil {
		return err
	}
	path, err := l.Pool.Base(ctx, baseID(s.Image.Digest), storage.Disk)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	s.Disk, s.Image.DiskBytes = true, api.Bytes(info.Size())
	if foreign {
		s.Image.Models, s.Image.SizeBytes = []api.Model{api.VM}, allocated(info)
	}
	return nil
}

func allocated(info os.FileInfo) api.Bytes {
	if st, ok := info.Sys().(*unix.Stat_t); ok {
		return api.Bytes(st.Blocks * 512)
	}
	return api.Bytes(info.Size())
}

// removeBases undoes addTree and addDisk, unless the image was there before, or somebody else makes the same.
func (l *Library) removeBases(ctx context.Context, r *makingRun) error {
	digest := r.State.Image.Digest
	if digest == "" {
		return nil
	}
	if others := l.unclaim(digest, r.ID); others {
		return nil
	}
	_, err := l.Images.Get(ctx, digest)
	if err == nil {
		return nil
	}
	if api.KindOf(err) != api.NotFound {
		return err
	}
	return errors.Join(l.Pool.DeleteBase(ctx, baseID(digest), storage.Disk), l.Pool.DeleteBase(ctx, baseID(digest), storage.Tree))
}

// checkAliasFree refuses an alias that another image has, unless it may move. The operation holds the alias' lock: it stays free.
func (l *Library) checkAliasFree(ctx context.Context, s *making) error {
	if s.Replace {
		return nil
	}
	recs, err := l.Images.List(ctx)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		if rec.Key != s.Image.Digest && slices.Contains(rec.Value.Image.Aliases, s.Alias) {
			return api.Errorf(api.Exists, "alias %q is taken by image %s: choose another, or delete that one", s.Alias, shortDigest(rec.Key))
		}
	}
	return nil
}

func shortDigest(digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return hex[:min(12, len(hex))]
}

// publish makes the image known, in one write: its record, and the alias, which leaves the image that had it.
func (l *Library) publish(ctx context.Context, r *makingRun) error {
	s := &r.State
	if err := l.claim(s.Image.Digest, r.ID, beingMade); err != nil {
		return err
	}
	recs, err := l.Images.List(ctx)
	if err != nil {
		return err
	}
	var ops []store.Op
	image := s.Image
	known := false
	for _, rec := range recs {
		aliases := rec.Value.Image.Aliases
		switch {
		case rec.Key == s.Image.Digest:
			known = true
			changed := l.here(&rec.Value, s)
			if !slices.Contains(aliases, s.Alias) {
				rec.Value.Image.Aliases = append(slices.Clone(aliases), s.Alias)
				changed = true
			}
			if changed {
				ops = append(ops, l.Images.OpUpdate(rec))
			}
			image = rec.Value.Image
		case slices.Contains(aliases, s.Alias):
			rec.Value.Image.Aliases = slices.DeleteFunc(slices.Clone(aliases), func(a string) bool { return a == s.Alias })
			ops = append(ops, l.Images.OpUpdate(rec))
		}
	}
	if !known {
		image.Aliases = []string{s.Alias}
		made := Record{Image: image, Tree: s.Tree, Disk: s.Disk}
		l.here(&made, s)
		image = made.Image
		ops = append(ops, l.Images.OpCreate(image.Digest, made))
	}
	if len(ops) > 0 {
		if _, err := l.Store.Txn(ctx, ops...); err != nil {
			return fmt.Errorf("publish image %s: %w", s.Alias, err)
		}
	}
	r.Result(image)
	l.unclaim(image.Digest, r.ID)
	return l.removeWork(ctx, r)
}

// here notes in a record that this host has what was made, and reports whether that was news.
func (l *Library) here(rec *Record, s *making) bool {
	tree := s.Tree && rec.setOn(storage.Tree, l.Host, true)
	return s.Disk && rec.setOn(storage.Disk, l.Host, true) || tree
}

// removeWork removes all that the operation had beside the bases.
func (l *Library) removeWork(ctx context.Context, r *makingRun) error {
	if s := r.State.Spool; s != "" {
		if err := removeTree(s); err != nil {
			return err
		}
	}
	if r.State.Source != nil {
		if err := l.Pool.Delete(ctx, publishedVolume(r)); err != nil {
			return err
		}
	}
	return removeTree(l.work(r))
}

// removeTree removes a directory of ours with all that is in it. What a tool that was killed left mounted there is unmounted first, so that
// nothing is removed through a mount.
func removeTree(path string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var mounts []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], path+"/") {
			mounts = append(mounts, fields[4])
		}
	}
	for _, mount := range slices.Backward(mounts) {
		if err := unix.Unmount(unescapeMount(mount), unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", mount, err)
		}
	}
	return os.RemoveAll(path)
}

// unescapeMount undoes the kernel's octal escapes of blanks in mountinfo.
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
