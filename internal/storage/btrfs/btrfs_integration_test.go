//go:build integration

package btrfs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"polder/api"
	"polder/internal/command"
	"polder/internal/storage"
	"polder/internal/storage/pooldir"
	"polder/internal/storage/storagetest"
)

// fileSystem makes a btrfs of its own in a loop file.
func fileSystem(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	run(t, "truncate", "-s", size, image)
	run(t, "mkfs.btrfs", "-q", image)
	if err := os.Mkdir(mount, 0o711); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop,commit=1", image, mount) // deleted subvolumes go with a commit
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return mount
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := command.Run(t.Context(), nil, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func open(t *testing.T, path string) storage.Pool {
	t.Helper()
	p, err := Open(t.Context(), "test", path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	suite := storagetest.Suite{Open: open}
	if suite.Churn(t) {
		return
	}
	mount := fileSystem(t, "2G")
	suite.Dir = func(t *testing.T) string {
		dir, err := os.MkdirTemp(mount, "pool")
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	suite.Run(t)

	// However the processes of the suite ended, no quota group is left that no volume has.
	metas, err := filepath.Glob(filepath.Join(mount, "*", "volumes", "*", "meta"))
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, path := range metas {
		if meta, err := pooldir.ReadMeta(filepath.Dir(path)); err != nil {
			t.Error(err)
		} else if meta.QGroup != 0 {
			want++
		}
	}
	if got := strings.Count(run(t, "btrfs", "qgroup", "show", mount), "\n1/"); got != want || want == 0 {
		t.Errorf("%d quota groups for %d volumes", got, want)
	}
}

func fill(content string) func(context.Context, string) error {
	return func(_ context.Context, path string) error {
		return os.WriteFile(filepath.Join(path, "file"), []byte(content), 0o644)
	}
}

func poolWithVolume(t *testing.T, size api.Bytes) (storage.Pool, storage.Volume) {
	t.Helper()
	p := open(t, fileSystem(t, "1G"))
	if err := p.AddBase(t.Context(), "b", storage.Tree, fill("base")); err != nil {
		t.Fatal(err)
	}
	v, err := p.Clone(t.Context(), "b", storage.Tree, "v", size)
	if err != nil {
		t.Fatal(err)
	}
	return p, v
}

func TestBaseIsReadOnly(t *testing.T) {
	p, _ := poolWithVolume(t, 0)
	base, err := p.Base(t.Context(), "b", storage.Tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(base, "file"), nil, 0o644); err == nil {
		t.Error("root could write to a base")
	}
}

// The limit holds for subvolumes made inside the VE too; a full volume can be deleted, with those and its quota group.
func TestLimitAndNestedSubvolumes(t *testing.T) {
	p, v := poolWithVolume(t, 64*api.MiB)
	if ok, why := p.Enforces(t.Context()); !ok {
		t.Fatalf("limits are not kept: %s", why)
	}
	nested := filepath.Join(v.Path, "nested")
	run(t, "btrfs", "subvolume", "create", nested)
	run(t, "btrfs", "subvolume", "create", nested+"/deeper")
	run(t, "btrfs", "subvolume", "snapshot", "-r", nested, v.Path+"/readonly")
	for _, name := range []string{nested + "/deeper/file", v.Path + "/file2"} {
		out, err := exec.Command("dd", "if=/dev/zero", "of="+name, "bs=1M", "count=60", "conv=fsync").CombinedOutput()
		last := name == v.Path+"/file2"
		if last != (err != nil) || last && !strings.Contains(string(out), "quota exceeded") {
			t.Errorf("write %s: %v: %s", name, err, out)
		}
	}
	if used, err := p.Usage(t.Context(), "v"); err != nil || used < 60*api.MiB || used > 64*api.MiB {
		t.Errorf("usage %s, %v", used, err)
	}
	if err := p.Delete(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	if list := run(t, "btrfs", "subvolume", "list", p.Path()); strings.Contains(list, "trash") || strings.Contains(list, "nested") {
		t.Errorf("subvolumes are left: %s", list)
	}
	if groups := run(t, "btrfs", "qgroup", "show", p.Path()); strings.Contains(groups, "\n1/") {
		t.Errorf("quota groups are left: %s", groups)
	}
	if left, _ := os.ReadDir(filepath.Join(p.Path(), "trash")); len(left) > 0 {
		t.Errorf("trash: %v", left)
	}
}

// A VE that has used up its limit can help itself by deleting.
// A copy has the subvolumes that were made inside, as they are, and counts what it writes itself.
func TestCopyHasNestedSubvolumes(t *testing.T) {
	p, v := poolWithVolume(t, 64*api.MiB)
	run(t, "btrfs", "subvolume", "create", filepath.Join(v.Path, "a"))
	run(t, "mkdir", filepath.Join(v.Path, "a/dir"))
	run(t, "btrfs", "subvolume", "create", filepath.Join(v.Path, "a/dir/b"))
	run(t, "dd", "if=/dev/zero", "of="+filepath.Join(v.Path, "a/dir/b/file"), "bs=1M", "count=16", "status=none")
	run(t, "btrfs", "property", "set", filepath.Join(v.Path, "a"), "ro", "true")
	c, err := p.Copy(t.Context(), v.ID, "copy")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(c.Path, "a/dir/b/file")); err != nil || info.Size() != 16<<20 {
		t.Errorf("in the copy: %v, %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(c.Path, "a/file"), nil, 0o600); err == nil {
		t.Error("the read-only subvolume is writable in the copy")
	}
	run(t, "sync", "-f", c.Path)
	if used, err := p.Usage(t.Context(), "copy"); err != nil || used > api.MiB {
		t.Errorf("a fresh copy uses %v, %v", used, err)
	}
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(c.Path, "a/dir/b/more"), "bs=1M", "count=56", "status=none").CombinedOutput(); err == nil || !strings.Contains(string(out), "quota") {
		t.Errorf("72 MiB in a volume of 64: %v, %s", err, out)
	}
	for _, id := range []string{v.ID, "copy"} {
		if err := p.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

func TestFullVolumeCanBeEmptied(t *testing.T) {
	_, v := poolWithVolume(t, 32*api.MiB)
	name := filepath.Join(v.Path, "big")
	if err := exec.Command("dd", "if=/dev/zero", "of="+name, "bs=1M", "count=60", "conv=fsync").Run(); err == nil {
		t.Fatal("the limit was not kept")
	}
	if err := os.Remove(name); err != nil {
		t.Error(err)
	}
}

func TestDisksAreOverwrittenInPlace(t *testing.T) {
	p := open(t, fileSystem(t, "256M"))
	err := p.AddBase(t.Context(), "b", storage.Disk, func(_ context.Context, path string) error {
		return os.WriteFile(path, make([]byte, 1<<20), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	base, err := p.Base(t.Context(), "b", storage.Disk)
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Clone(t.Context(), "b", storage.Disk, "v", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{base, v.Path} {
		if flags, _, _ := strings.Cut(run(t, "lsattr", path), " "); !strings.Contains(flags, "C") {
			t.Errorf("%s has flags %s", path, flags)
		}
	}
}

func TestFullPoolIsExhausted(t *testing.T) {
	p := open(t, fileSystem(t, "256M"))
	err := p.AddBase(t.Context(), "big", storage.Tree, fill(strings.Repeat("x", 300<<20)))
	if api.KindOf(err) != api.Exhausted || !strings.Contains(err.Error(), `pool "test" is full`) {
		t.Errorf("got %v", err)
	}
	run(t, "btrfs", "subvolume", "sync", p.Path()) // the kernel gives the space back later
	if err := p.AddBase(t.Context(), "small", storage.Tree, fill("x")); err != nil {
		t.Errorf("nothing fits any more: %v", err)
	}
}

func TestOtherFileSystemIsRefused(t *testing.T) {
	if _, err := Open(t.Context(), "test", "/dev/shm"); api.KindOf(err) != api.Unsupported {
		t.Errorf("got %v", err)
	}
}

func TestForeignQuotasAreLeftAlone(t *testing.T) {
	mount := fileSystem(t, "256M")
	run(t, "btrfs", "quota", "enable", mount)
	p := open(t, mount)
	if ok, why := p.Enforces(t.Context()); ok || !strings.Contains(why, "btrfs quota disable") {
		t.Errorf("enforces %v: %q", ok, why)
	}
	if err := p.AddBase(t.Context(), "b", storage.Tree, fill("base")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Clone(t.Context(), "b", storage.Tree, "v", api.GiB); err != nil {
		t.Fatal(err)
	}
	if used, err := p.Usage(t.Context(), "v"); err != nil || used > api.MiB {
		t.Errorf("usage %s, %v", used, err)
	}
	if err := p.Delete(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkCloneDelete(b *testing.B) {
	p, err := Open(b.Context(), "bench", b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	if err := p.AddBase(b.Context(), "b", storage.Tree, fill("base")); err != nil {
		b.Fatal(err)
	}
	defer func() { // b.TempDir cannot remove what is read-only
		if err := p.DeleteBase(b.Context(), "b", storage.Tree); err != nil {
			b.Error(err)
		}
	}()
	if err := p.AddBase(b.Context(), "b", storage.Disk, func(_ context.Context, path string) error {
		return os.WriteFile(path, make([]byte, 256<<20), 0o600)
	}); err != nil {
		b.Fatal(err)
	}
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		b.Run("clone-"+string(kind), func(b *testing.B) {
			for b.Loop() {
				if _, err := p.Clone(b.Context(), "b", kind, "v", api.GiB); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := p.Delete(b.Context(), "v"); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run("delete-"+string(kind), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				if _, err := p.Clone(b.Context(), "b", kind, "v", api.GiB); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := p.Delete(b.Context(), "v"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
