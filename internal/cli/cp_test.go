package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"polder/api"
)

type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, content}
}

func link(name, to string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
}

func dir(name string, mode int64) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, ""}
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// arena is a directory with a destination in it, and something beside it that must stay as it is.
func arena(t testing.TB) (root, dst string) {
	t.Helper()
	root = t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "secret"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	return root, filepath.Join(root, "dst")
}

// untouched fails when anything but dst has changed.
func untouched(t testing.TB, root string) {
	t.Helper()
	if data, err := os.ReadFile(filepath.Join(root, "secret")); err != nil || string(data) != "untouched" {
		t.Errorf("outside the destination: %q, %v", data, err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "secret" && e.Name() != "dst" {
			t.Errorf("outside the destination: %s appeared", e.Name())
		}
	}
}

func receive(t testing.TB, root string, isDir bool, data []byte) (warnings []string, err error) {
	t.Helper()
	l := &localSide{warn: func(text string) { warnings = append(warnings, text) }}
	err = l.receive(context.Background(), target{root, "dst"}, isDir, bytes.NewReader(data))
	return warnings, err
}

func TestHostileTarStaysInside(t *testing.T) {
	for name, entries := range map[string][]entry{
		"dot-dot":                 {file("../secret", "evil")},
		"dot-dot inside":          {file("a/../../secret", "evil")},
		"absolute":                {file("/tmp/polder-evil", "evil")},
		"link to the parent":      {link("up", ".."), file("up/secret", "evil")},
		"link to the file":        {link("x", "../secret"), file("x", "evil")},
		"absolute link":           {link("x", "/"), file("x/tmp/polder-evil", "evil")},
		"two links":               {link("a", "b/.."), link("b", ".."), file("a/secret", "evil")},
		"hard link out":           {{tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "../secret"}, ""}, file("x", "evil")},
		"hard link by link":       {link("up", ".."), {tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "up/secret"}, ""}, file("x", "evil")},
		"directory over link":     {link("up", ".."), dir("up/new", 0o755)},
		"link over a directory":   {dir("d", 0o755), link("d", ".."), file("d/secret", "evil")},
		"mode of the outside":     {link("s", "../secret"), dir("s", 0o777)},
		"destination itself":      {link(".", ".."), file("secret", "fine")},
		"destination by its name": {file("./../dst/../secret", "evil")},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := arena(t)
			receive(t, root, true, pack(t, entries...)) //nolint:errcheck // refused or harmless: only the outcome counts
			untouched(t, root)
			if _, err := os.Lstat("/tmp/polder-evil"); err == nil {
				os.Remove("/tmp/polder-evil")
				t.Error("a file was written to /tmp")
			}
		})
	}
}

func TestHostileFile(t *testing.T) {
	for name, entries := range map[string][]entry{
		"two files":   {file("a", "1"), file("b", "2")},
		"a link":      {link("a", "/etc/passwd")},
		"a directory": {dir("a", 0o755)},
		"nothing":     {},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := arena(t)
			if _, err := receive(t, root, false, pack(t, entries...)); err == nil {
				t.Error("no error")
			}
			untouched(t, root)
		})
	}
	root, dst := arena(t)
	if _, err := receive(t, root, false, pack(t, file("../../whatever", "content"))); err != nil {
		t.Errorf("a file's own name does not matter: %v", err)
	}
	if data, _ := os.ReadFile(dst); string(data) != "content" {
		t.Errorf("got %q", data)
	}
	untouched(t, root)
}

func TestReceiveTree(t *testing.T) {
	root, dst := arena(t)
	setuid := file("bin/su", "x")
	setuid.Mode = 0o4755
	warnings, err := receive(t, root, true, pack(t,
		dir(".", 0o755), dir("locked", 0o500), file("locked/inside", "1"), file("late/parent", "2"), link("link", "/anywhere"),
		setuid, entry{tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"}, ""}, entry{tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, ""},
		entry{tar.Header{Typeflag: tar.TypeLink, Name: "again", Linkname: "./late/parent"}, ""},
	))
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 2 {
		t.Errorf("warnings %q, want two, for the pipe and the device", warnings)
	}
	for name, want := range map[string]string{"locked/inside": "1", "late/parent": "2", "again": "2"} {
		if data, err := os.ReadFile(filepath.Join(dst, name)); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dst, "bin/su")); err != nil || info.Mode()&fs.ModeSetuid != 0 {
		t.Errorf("setuid survived: %v, %v", info, err)
	}
	if to, _ := os.Readlink(filepath.Join(dst, "link")); to != "/anywhere" {
		t.Errorf("link to %q", to)
	}
}

func TestReceiveTruncated(t *testing.T) {
	root, dst := arena(t)
	whole := pack(t, file("a", strings.Repeat("x", 4000)))
	if _, err := receive(t, root, true, whole[:2000]); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want an unexpected end", err)
	}
	os.RemoveAll(dst)
	if _, err := receive(t, root, false, whole[:2000]); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(dst); err == nil {
		t.Error("half a file is there")
	}
}

// FuzzReceive unpacks what a VE might send.
func FuzzReceive(f *testing.F) {
	f.Add(pack(f, dir("d", 0o755), file("d/f", "x"), link("l", "d")), true)
	f.Add(pack(f, link("up", ".."), file("up/secret", "evil")), true)
	f.Add(pack(f, file("a", "x")), false)
	f.Fuzz(func(t *testing.T, data []byte, isDir bool) {
		root, _ := arena(t)
		receive(t, root, isDir, data) //nolint:errcheck // only the outcome counts
		untouched(t, root)
	})
}

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]place{
		"c1:/etc":    {"c1", "/etc"},
		"./c1:/etc":  {"", "./c1:/etc"},
		"/a:b":       {"", "/a:b"},
		"dir/a:/b":   {"", "dir/a:/b"},
		"plain":      {"", "plain"},
		"c1:/a:/b/ ": {"c1", "/a:/b/ "},
	} {
		if got, err := parsePlace(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "c1:", "c1:etc", "C1:/etc", "a b:/etc", ":/etc"} {
		if got, err := parsePlace(bad); api.KindOf(err) != api.Invalid {
			t.Errorf("%q: %+v, %v; want invalid", bad, got, err)
		}
	}
}

func TestParseLook(t *testing.T) {
	for text, want := range map[string]found{
		"directory\n4096\n@/srv\n": {exists: true, dir: true, hasParent: true, size: 4096, path: "/srv"},
		"file\n@/etc/os-release\n": {exists: true, hasParent: true, path: "/etc/os-release"},
		"file\n12\n@\n":            {exists: true, hasParent: true, size: 12},
		"absent\n":                 {hasParent: true},
		"nowhere\n":                {},
		"":                         {},
		"file\n-5\n@relative":      {exists: true, hasParent: true},
	} {
		if got := parseLook(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}
