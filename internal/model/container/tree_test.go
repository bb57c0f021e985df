package container

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"polder/api"
)

func mustWrite(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// hostile is a tree next to a directory "outside" that it must not reach.
func hostile(t *testing.T) (t1 tree, dir, outside string) {
	t.Helper()
	base := t.TempDir()
	dir, outside = filepath.Join(base, "tree"), filepath.Join(base, "outside")
	mustWrite(t, outside, "file", "untouched")
	mustWrite(t, dir, "etc/real", "inside")
	root, err := openTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root, dir, outside
}

func TestWriteStaysInTheTree(t *testing.T) {
	root, dir, outside := hostile(t)
	for name, target := range map[string]string{
		"etc/absolute": outside + "/file",
		"etc/relative": "../../outside/file",
		"etc/magic":    "/proc/self/cwd",
		"etc/dangling": "nowhere",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := root.write("/"+name, []byte("new"), 0o644); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != "new" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s is %v, %v; want a regular file", name, info.Mode(), err)
		}
	}
	// A directory that leads out: the kernel takes its target as inside.
	if err := os.Symlink("../../../../../../../.."+outside, filepath.Join(dir, "var")); err != nil {
		t.Fatal(err)
	}
	_ = root.write("/var/file", []byte("new"), 0o644)
	_ = root.write("/var/../../outside/file", []byte("new"), 0o644)
	if got, _ := os.ReadFile(outside + "/file"); string(got) != "untouched" {
		t.Fatalf("the file outside became %q", got)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Fatalf("outside has %v", entries)
	}
}

func TestWriteReplacesWhatIsThere(t *testing.T) {
	root, dir, _ := hostile(t)
	if err := unix.Mkfifo(filepath.Join(dir, "etc/pipe"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, "etc/.polder.new")); err != nil { // left by a write that was cut off
		t.Fatal(err)
	}
	for range 2 {
		if err := root.write("/etc/pipe", []byte("new"), 0o444); err != nil {
			t.Fatal(err)
		}
		if got, err := root.read("/etc/pipe", 10); err != nil || string(got) != "new" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	before, _ := os.Stat(filepath.Join(dir, "etc/pipe"))
	if err := root.write("/etc/pipe", []byte("new"), 0o444); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(filepath.Join(dir, "etc/pipe")); !os.SameFile(before, after) {
		t.Error("a file that was right already was written again")
	}
	if err := root.write("/new/directories/file", []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "etc/hosts"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := root.write("/etc/hosts", nil, 0o644); err == nil {
		t.Error("a directory was replaced")
	}
	if entries, _ := filepath.Glob(filepath.Join(dir, "etc/.polder*")); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestReadIsBounded(t *testing.T) {
	root, dir, outside := hostile(t)
	mustWrite(t, dir, "etc/large", strings.Repeat("x", 101))
	if err := errors.Join(unix.Mkfifo(filepath.Join(dir, "etc/pipe"), 0o666), os.Symlink("/dev/zero", filepath.Join(dir, "etc/zero")), os.Symlink(outside+"/file", filepath.Join(dir, "etc/out"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/etc/large", "/etc/pipe", "/etc"} {
		if _, err := root.read(name, 100); api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v; want an invalid error", name, err)
		}
	}
	for _, name := range []string{"/etc/zero", "/etc/out", "/none"} {
		if _, err := root.read(name, 100); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v; want that it is not there", name, err)
		}
	}
	if got, err := root.read("/../../etc/real", 100); err != nil || string(got) != "inside" {
		t.Errorf("%q, %v", got, err)
	}
}
