//go:build integration

package dir

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
	"polder/internal/storage"
	"polder/internal/storage/storagetest"
)

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := command.Run(t.Context(), nil, name, args...); err != nil {
		t.Fatal(err)
	}
}

// fileSystem makes one in a loop file.
func fileSystem(t *testing.T, size string, mkfs ...string) string {
	t.Helper()
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	run(t, "truncate", "-s", size, image)
	run(t, mkfs[0], append(mkfs[1:], image)...)
	if err := os.Mkdir(mount, 0o711); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop", image, mount)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return mount
}

// overlay mounts a tree as whoever runs the VE does.
func overlay(t *testing.T, v storage.Volume) (string, func()) {
	t.Helper()
	options := "lowerdir=" + v.Lower + ",upperdir=" + v.Upper + ",workdir=" + v.Work
	if err := unix.Mount("overlay", v.Path, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	return v.Path, func() {
		if err := unix.Unmount(v.Path, 0); err != nil {
			t.Error(err)
		}
	}
}

// conformance runs the suite on a file system that mount makes.
func conformance(t *testing.T, mount func() string) {
	t.Helper()
	suite := storagetest.Suite{Open: open, Mount: overlay}
	if suite.Churn(t) {
		return
	}
	top := mount()
	suite.Dir = func(t *testing.T) string {
		dir, err := os.MkdirTemp(top, "pool")
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	suite.Run(t)
}

func TestConformanceExt4(t *testing.T) {
	conformance(t, func() string { return fileSystem(t, "512M", "mkfs.ext4", "-q") })
}

func TestConformanceTmpfs(t *testing.T) {
	conformance(t, func() string { return poolDir(t) })
}

// Reflinks are tried on btrfs: the tools of xfs are not on every host, and the dir driver knows neither by name.
func TestConformanceReflink(t *testing.T) {
	conformance(t, func() string {
		mount := fileSystem(t, "1G", "mkfs.btrfs", "-q")
		if p, err := Open(t.Context(), "test", mount); err != nil || !p.Reflinks() {
			t.Fatalf("no reflinks: %v", err)
		}
		return mount
	})
}

func TestFullPoolIsExhausted(t *testing.T) {
	p := open(t, fileSystem(t, "64M", "mkfs.ext4", "-q"))
	err := p.AddBase(t.Context(), "big", storage.Disk, func(_ context.Context, path string) error {
		_, err := command.Run(t.Context(), nil, "dd", "if=/dev/zero", "of="+path, "bs=1M", "count=100")
		return err
	})
	if api.KindOf(err) != api.Exhausted || !strings.Contains(err.Error(), `pool "test" is full`) {
		t.Errorf("got %v", err)
	}
}

func TestOverlayIsRefused(t *testing.T) {
	mount := fileSystem(t, "64M", "mkfs.ext4", "-q")
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(mount, name), 0o711); err != nil {
			t.Fatal(err)
		}
	}
	merged, unmount := overlay(t, storage.Volume{Path: mount + "/merged", Lower: mount + "/lower", Upper: mount + "/upper", Work: mount + "/work"})
	defer unmount()
	p := open(t, merged)
	if err := p.AddBase(t.Context(), "b", storage.Tree, func(context.Context, string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Clone(t.Context(), "b", storage.Tree, "v", 0); api.KindOf(err) != api.Unsupported {
		t.Errorf("got %v", err)
	}
}

// A pool that gets full while a volume is made keeps nothing of it, and works again when there is room.
func TestFullWhileCloning(t *testing.T) {
	mount := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount)
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	p := open(t, mount)
	err := p.AddBase(t.Context(), "b", storage.Disk, func(_ context.Context, path string) error {
		return os.WriteFile(path, make([]byte, 64<<10), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(mount, "filler")
	if _, err := command.Run(t.Context(), nil, "dd", "if=/dev/zero", "of="+filler, "bs=4k"); api.KindOf(err) != api.Exhausted {
		t.Fatalf("got %v", err)
	}
	if _, err := p.Clone(t.Context(), "b", storage.Disk, "v", 0); api.KindOf(err) != api.Exhausted || !strings.Contains(err.Error(), "is full: delete") {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(mount, "volumes")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Clone(t.Context(), "b", storage.Disk, "v", 0); err != nil {
		t.Error(err)
	}
}
