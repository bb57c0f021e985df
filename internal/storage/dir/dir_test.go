package dir

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"polder/internal/storage"
	"polder/internal/storage/storagetest"
)

// poolDir is an empty directory on a file system that can be below an overlay.
func poolDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	if s.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return dir
	}
	dir, err := os.MkdirTemp("/dev/shm", "polder")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, path string) storage.Pool {
	t.Helper()
	p, err := Open(t.Context(), "test", path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fakeQemuImg stands in for qemu-img, which a machine that only builds need not have: it checks that the backing file
// is there, absolute and has a format, and writes the size.
const fakeQemuImg = `#!/bin/sh
[ "$*" = "create -q -f qcow2 -F raw -b $8 $9 ${10}" ] && [ -f "$8" ] && [ "${8#/}" != "$8" ] && echo "${10}" >"$9"
`

func TestConformanceUnmounted(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "qemu-img"), []byte(fakeQemuImg), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	storagetest.Suite{Open: open, Dir: poolDir}.RunUnmounted(t)
}
