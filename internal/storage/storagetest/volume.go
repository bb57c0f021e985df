package storagetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"polder/api"
	"polder/internal/storage"
)

const errNoSpace = syscall.ENOSPC

func (s Suite) clone(t *testing.T) {
	p := s.poolWithBases(t)
	tree, err := p.Clone(t.Context(), baseID, storage.Tree, "t", api.GiB)
	must(t, err)
	disk, err := p.Clone(t.Context(), baseID, storage.Disk, "d", 8*api.MiB)
	must(t, err)
	if tree.ID != "t" || tree.Kind != storage.Tree || tree.Format != "" || tree.Size != api.GiB {
		t.Errorf("got %+v", tree)
	}
	if disk.ID != "d" || disk.Kind != storage.Disk || disk.Format == "" || disk.Size != 8*api.MiB {
		t.Errorf("got %+v", disk)
	}
	root, unmount := s.Mount(t, tree)
	if got := read(t, filepath.Join(root, "etc/hostname")); got != "base\n" {
		t.Errorf("the clone has %q", got)
	}
	info, err := os.Stat(root)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("root is %v, %v", info, err)
	}
	unmount()
	content := s.content(t, disk)
	if len(content) != int(8*api.MiB) || content[0] != 0xd1 || content[diskSize-1] != 0xd1 || content[diskSize] != 0 {
		t.Errorf("the disk has %d bytes: %x … %x", len(content), content[:4], content[len(content)-4:])
	}
	for _, want := range []storage.Volume{tree, disk} {
		got, err := p.Volume(t.Context(), want.ID)
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		again, err := p.Clone(t.Context(), baseID, want.Kind, want.ID, 0)
		if err != nil || again != want {
			t.Errorf("clone again: %+v, %v, want %+v", again, err, want)
		}
	}
	_, err = p.Clone(t.Context(), baseID, storage.Disk, "t", 0)
	wantKind(t, err, api.Exists)
	list, err := p.Volumes(t.Context())
	if err != nil || !slices.Equal(list, []storage.Volume{disk, tree}) {
		t.Errorf("volumes %+v, %v", list, err)
	}
}

// content is what a VE would read from a disk.
func (s Suite) content(t *testing.T, v storage.Volume) []byte {
	t.Helper()
	if v.Format == "raw" {
		return []byte(read(t, v.Path))
	}
	raw := filepath.Join(t.TempDir(), "raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", v.Format, "-O", "raw", v.Path, raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img convert: %v: %s", err, out)
	}
	return []byte(read(t, raw))
}

func (s Suite) cloneSizes(t *testing.T) {
	p := s.poolWithBases(t)
	for _, c := range []struct {
		kind      storage.Kind
		ask, want api.Bytes
		fails     api.Kind
	}{
		{storage.Disk, 0, diskSize, ""},
		{storage.Disk, diskSize, diskSize, ""},
		{storage.Disk, 10 * api.GiB, 10 * api.GiB, ""},
		{storage.Disk, diskSize - 512, 0, api.Invalid},
		{storage.Disk, -1, 0, api.Invalid},
		{storage.Tree, 0, 0, ""},
		{storage.Tree, 10 * api.GiB, 10 * api.GiB, ""},
		{storage.Tree, 4096, 0, api.Invalid},
	} {
		v, err := p.Clone(t.Context(), baseID, c.kind, "v", c.ask)
		if api.KindOf(err) != c.fails || v.Size != c.want {
			t.Errorf("%s of %s: got %s, %v", c.kind, c.ask, v.Size, err)
		}
		must(t, p.Delete(t.Context(), "v"))
	}
}

func (s Suite) cloneIsPrivate(t *testing.T) {
	p := s.poolWithBases(t)
	one, err := p.Clone(t.Context(), baseID, storage.Tree, "one", 0)
	must(t, err)
	two, err := p.Clone(t.Context(), baseID, storage.Tree, "two", 0)
	must(t, err)
	root, unmount := s.Mount(t, one)
	must(t, os.WriteFile(filepath.Join(root, "etc/hostname"), []byte("one\n"), 0o644))
	must(t, os.RemoveAll(filepath.Join(root, "usr")))
	unmount()
	root, unmount = s.Mount(t, two)
	if got := read(t, filepath.Join(root, "etc/hostname")); got != "base\n" {
		t.Errorf("the other clone has %q", got)
	}
	unmount()
	base, err := p.Base(t.Context(), baseID, storage.Tree)
	must(t, err)
	if got := read(t, filepath.Join(base, "etc/hostname")); got != "base\n" {
		t.Errorf("the base has %q", got)
	}
	root, unmount = s.Mount(t, one)
	if got := read(t, filepath.Join(root, "etc/hostname")); got != "one\n" {
		t.Errorf("the clone lost its change: %q", got)
	}
	if _, err := os.Stat(filepath.Join(root, "usr")); !os.IsNotExist(err) {
		t.Errorf("what was removed is back: %v", err)
	}
	unmount()
}

// A copy has what its source had at that moment, lives on its own, and can be copied itself.
func (s Suite) copyVolume(t *testing.T) {
	p := s.poolWithBases(t)
	_, err := p.Copy(t.Context(), "none", "c")
	wantKind(t, err, api.NotFound)
	for kind, size := range map[storage.Kind]api.Bytes{storage.Tree: api.GiB, storage.Disk: 8 * api.MiB} {
		from, err := p.Clone(t.Context(), baseID, kind, "from", size)
		must(t, err)
		s.put(t, from, "one")
		c, err := p.Copy(t.Context(), "from", "c")
		must(t, err)
		if c.ID != "c" || c.Kind != kind || c.Format != from.Format || c.Size != size || c.Path == from.Path {
			t.Errorf("the copy of %+v is %+v", from, c)
		}
		s.put(t, from, "two")
		if got := s.get(t, c); got != "one" {
			t.Errorf("%s: the copy has %q", kind, got)
		}
		s.put(t, c, "own")
		if got := s.get(t, from); got != "two" {
			t.Errorf("%s: the source has %q", kind, got)
		}
		if again, err := p.Copy(t.Context(), "from", "c"); err != nil || again != c || s.get(t, again) != "own" {
			t.Errorf("%s: copied again: %+v, %v", kind, again, err)
		}
		must(t, p.Delete(t.Context(), "from"))
		second, err := p.Copy(t.Context(), "c", "second")
		must(t, err)
		must(t, p.Delete(t.Context(), "c"))
		if got := s.get(t, second); got != "own" {
			t.Errorf("%s: the copy's copy has %q", kind, got)
		}
		must(t, p.Delete(t.Context(), "second"))
	}
	wantEmptyTrash(t, p)
}

// put writes three letters into a volume where get finds them: a file, or in the middle of the disk.
func (s Suite) put(t *testing.T, v storage.Volume, text string) {
	t.Helper()
	if v.Kind == storage.Tree {
		root, unmount := s.Mount(t, v)
		must(t, os.WriteFile(filepath.Join(root, "etc/text"), []byte(text), 0o600))
		unmount()
		return
	}
	script := fmt.Sprintf("write -P %d 2M 4k\nwrite -P %d 2052k 4k\nwrite -P %d 2056k 4k\nflush\n", text[0], text[1], text[2])
	cmd := exec.Command("qemu-io", "-f", v.Format, v.Path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
}

func (s Suite) get(t *testing.T, v storage.Volume) string {
	t.Helper()
	if v.Kind == storage.Tree {
		root, unmount := s.Mount(t, v)
		defer unmount()
		return read(t, filepath.Join(root, "etc/text"))
	}
	content := s.content(t, v)[2*api.MiB:]
	return string([]byte{content[0], content[4096], content[8192]})
}

func (s Suite) cloneManyAtOnce(t *testing.T) {
	p := s.poolWithBases(t)
	var wg sync.WaitGroup
	for i := range 16 {
		kind := storage.Tree
		if i%2 == 1 {
			kind = storage.Disk
		}
		for range 2 { // the same one twice at the same time
			wg.Go(func() {
				if _, err := p.Clone(t.Context(), baseID, kind, id(i), api.GiB); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	list, err := p.Volumes(t.Context())
	if err != nil || len(list) != 16 {
		t.Errorf("%d volumes, %v", len(list), err)
	}
	for i := range 16 {
		wg.Go(func() {
			if err := p.Delete(t.Context(), id(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantEmptyTrash(t, p)
}

// diskIsReachable: QEMU opens a disk by path as the VE's own user; trees are nobody's but root's.
func (s Suite) diskIsReachable(t *testing.T) {
	p := s.poolWithBases(t)
	tree, err := p.Clone(t.Context(), baseID, storage.Tree, "t", 0)
	must(t, err)
	disk, err := p.Clone(t.Context(), baseID, storage.Disk, "d", 0)
	must(t, err)
	for dir := filepath.Dir(disk.Path); len(dir) >= len(p.Path()); dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		must(t, err)
		if dir != p.Path() && info.Mode().Perm() != 0o711 {
			t.Errorf("%s is %v, want 0711", dir, info.Mode())
		}
	}
	if info, err := os.Stat(disk.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("disk is %v, %v", info, err)
	}
	if disk.Format == "qcow2" { // read through to its base
		base, err := p.Base(t.Context(), baseID, storage.Disk)
		must(t, err)
		file, err := os.Stat(base)
		must(t, err)
		dir, err := os.Stat(filepath.Dir(base))
		must(t, err)
		if file.Mode().Perm() != 0o444 || dir.Mode().Perm() != 0o711 {
			t.Errorf("the base is %v in %v", file.Mode(), dir.Mode())
		}
	}
	if info, err := os.Stat(filepath.Dir(tree.Path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("above a tree is %v, %v", info, err)
	}
}

func (s Suite) deleteVolume(t *testing.T) {
	p := s.poolWithBases(t)
	v, err := p.Clone(t.Context(), baseID, storage.Tree, "v", api.GiB)
	must(t, err)
	root, unmount := s.Mount(t, v)
	must(t, os.WriteFile(filepath.Join(root, "mine"), []byte("mine"), 0o600))
	if v.Upper != "" { // an overlay, which is mounted now
		wantKind(t, p.Delete(t.Context(), "v"), api.Conflict)
		read(t, filepath.Join(root, "mine"))
	}
	unmount()
	must(t, p.Delete(t.Context(), "v"))
	_, err = p.Volume(t.Context(), "v")
	wantKind(t, err, api.NotFound)
	must(t, p.Delete(t.Context(), "v"))
	v, err = p.Clone(t.Context(), baseID, storage.Tree, "v", 0)
	must(t, err)
	root, unmount = s.Mount(t, v)
	if _, err := os.Stat(filepath.Join(root, "mine")); !os.IsNotExist(err) {
		t.Errorf("a new volume has an old one's file: %v", err)
	}
	unmount()
	wantEmptyTrash(t, p)
}

func (s Suite) deleteBase(t *testing.T) {
	p := s.poolWithBases(t)
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		v, err := p.Clone(t.Context(), baseID, kind, "v", 0)
		must(t, err)
		err = p.DeleteBase(t.Context(), baseID, kind)
		switch {
		case api.KindOf(err) == api.Conflict:
			if _, err := p.Base(t.Context(), baseID, kind); err != nil {
				t.Errorf("a base in use went: %v", err)
			}
		case err != nil:
			t.Error(err)
		case kind == storage.Disk: // the volume must do without its base
			if content := s.content(t, v); content[0] != 0xd1 {
				t.Error("the volume lost its data with its base")
			}
		default:
			root, unmount := s.Mount(t, v)
			read(t, filepath.Join(root, "etc/hostname"))
			unmount()
		}
		must(t, p.Delete(t.Context(), "v"))
		must(t, p.DeleteBase(t.Context(), baseID, kind))
		_, err = p.Base(t.Context(), baseID, kind)
		wantKind(t, err, api.NotFound)
	}
	wantEmptyTrash(t, p)
}

func (s Suite) usage(t *testing.T) {
	p := s.poolWithBases(t)
	const written = 2 * api.MiB
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		v, err := p.Clone(t.Context(), baseID, kind, "v", api.GiB)
		must(t, err)
		before, err := p.Usage(t.Context(), "v")
		if err != nil || before > api.MiB {
			t.Errorf("a new %s takes %s, %v", kind, before, err)
		}
		s.write(t, v, written)
		after, err := p.Usage(t.Context(), "v")
		if err != nil || after < before+written || after > before+written+api.MiB {
			t.Errorf("%s: %s before, %s after writing %s, %v", kind, before, after, written, err)
		}
		must(t, p.Delete(t.Context(), "v"))
	}
}

// write writes n bytes to a volume, as a VE would, and syncs.
func (s Suite) write(t *testing.T, v storage.Volume, n api.Bytes) {
	t.Helper()
	if v.Format == "qcow2" {
		cmd := exec.Command("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 "+n.String()[:1]+"M", v.Path)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("qemu-io: %v: %s", err, out)
		}
		return
	}
	path, unmount := v.Path, func() {}
	if v.Kind == storage.Tree {
		path, unmount = s.Mount(t, v)
		path = filepath.Join(path, "written")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	must(t, err)
	_, err = f.Write(make([]byte, n))
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	syscall.Sync()
	unmount()
}

// tidy: everything is found again in a pool that is opened again, and what was half-made is gone.
func (s Suite) tidy(t *testing.T) {
	path := s.Dir(t)
	p := s.Open(t, path)
	must(t, p.AddBase(t.Context(), baseID, storage.Tree, fillTree))
	keep, err := p.Clone(t.Context(), baseID, storage.Tree, "keep", api.GiB)
	must(t, err)
	// What a call that was cut off, as by kill -9, leaves.
	must(t, p.AddBase(t.Context(), "half", storage.Tree, fillTree))
	half := filepath.Join(path, "bases", "half.tree")
	must(t, os.Rename(filepath.Join(half, "root"), filepath.Join(half, ".new.root")))
	must(t, os.Mkdir(filepath.Join(path, "volumes", "half"), 0o700))

	p = s.Open(t, path)
	_, err = p.Base(t.Context(), "half", storage.Tree)
	wantKind(t, err, api.NotFound)
	must(t, p.Tidy(t.Context()))
	must(t, p.Tidy(t.Context()))
	wantEmptyTrash(t, p)
	for _, gone := range []string{half, filepath.Join(path, "volumes", "half")} {
		if _, err := os.Stat(gone); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	list, err := p.Volumes(t.Context())
	if err != nil || !slices.Equal(list, []storage.Volume{keep}) {
		t.Errorf("got %+v, %v, want %+v", list, err, keep)
	}
	must(t, p.AddBase(t.Context(), baseID, storage.Tree, mustNotFill))
	must(t, p.AddBase(t.Context(), "half", storage.Tree, fillTree))
}

// nothingLeft: what is made and deleted leaves the pool's directories empty.
func (s Suite) nothingLeft(t *testing.T) {
	p := s.poolWithBases(t)
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		_, err := p.Clone(t.Context(), baseID, kind, "v", api.GiB)
		must(t, err)
		must(t, p.Delete(t.Context(), "v"))
		must(t, p.DeleteBase(t.Context(), baseID, kind))
	}
	for _, section := range []string{"bases", "volumes"} {
		entries, err := os.ReadDir(filepath.Join(p.Path(), section))
		if err != nil || len(entries) > 0 {
			t.Errorf("%s has %v, %v", section, entries, err)
		}
	}
	wantEmptyTrash(t, p)
}
