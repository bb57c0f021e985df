package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"polder/api"
)

var roomy = unpackLimits{Bytes: 1 << 30, Entries: 1000}

func TestUnpackRefuses(t *testing.T) {
	huge := member("huge", tar.TypeReg, "x")
	foreign := member("file", tar.TypeReg, "")
	foreign.Uid = 100000
	long := strings.Repeat("n", 300)
	for name, c := range map[string]struct {
		members []tar.Header
		limits  unpackLimits
		kind    api.Kind
		want    string
	}{
		"parent":             {[]tar.Header{member("../evil", tar.TypeReg, "x")}, roomy, api.Invalid, `"../evil"`},
		"parent inside":      {[]tar.Header{member("a/../../evil", tar.TypeReg, "x")}, roomy, api.Invalid, "leads out of the root"},
		"absolute":           {[]tar.Header{member("/etc/evil", tar.TypeReg, "x")}, roomy, api.Invalid, `"/etc/evil"`},
		"character device":   {[]tar.Header{member("dev/null", tar.TypeChar, "")}, roomy, api.Invalid, `"dev/null": a device node`},
		"block device":       {[]tar.Header{member("dev/sda", tar.TypeBlock, "")}, roomy, api.Invalid, `"dev/sda": a device node`},
		"through absolute":   {[]tar.Header{member("out", tar.TypeSymlink, "/tmp"), member("out/evil", tar.TypeReg, "x")}, roomy, api.Invalid, `"out/evil"`},
		"link climbs":        {[]tar.Header{member("out", tar.TypeSymlink, "../../tmp")}, roomy, api.Invalid, `"out": a symbolic link to "../../tmp"`},
		"link climbs deeper": {[]tar.Header{member("a/b/out", tar.TypeSymlink, "x/../../../../tmp")}, roomy, api.Invalid, `"a/b/out"`},
		"link loop":          {[]tar.Header{member("a", tar.TypeSymlink, "b"), member("b", tar.TypeSymlink, "a"), member("a/evil", tar.TypeReg, "x")}, roomy, api.Invalid, "loop"},
		"hard link out":      {[]tar.Header{member("passwd", tar.TypeLink, "../../etc/passwd")}, roomy, api.Invalid, `"passwd": a hard link to "../../etc/passwd"`},
		"hard link absolute": {[]tar.Header{member("passwd", tar.TypeLink, "/etc/passwd")}, roomy, api.Invalid, `"passwd": a hard link`},
		"hard link nowhere":  {[]tar.Header{member("x", tar.TypeLink, "y")}, roomy, api.Invalid, `"x": a hard link to "y"`},
		"below a file":       {[]tar.Header{member("a", tar.TypeReg, ""), member("a/b", tar.TypeReg, "")}, roomy, api.Invalid, `"a" is not a directory`},
		"long name":          {[]tar.Header{member(long, tar.TypeReg, "")}, roomy, api.Invalid, "too long"},
		"foreign owner":      {[]tar.Header{foreign}, roomy, api.Unsupported, "100000"},
		"too large":          {[]tar.Header{huge}, unpackLimits{Bytes: 0, Entries: 10}, api.Exhausted, `"huge"`},
		"too many":           {[]tar.Header{member("a", tar.TypeDir, ""), member("b", tar.TypeDir, "")}, unpackLimits{Bytes: 1, Entries: 1}, api.Exhausted, "more than 1"},
		"unknown type":       {[]tar.Header{member("x", 'Z', "")}, roomy, api.Unsupported, "type"},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			dir := filepath.Join(outside, "tree")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := unpackTar(t.Context(), bytes.NewReader(archive(t, c.members...)), dir, c.limits)
			if api.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v: %v, want %v with %q", api.KindOf(err), err, c.kind, c.want)
			}
			if entries, _ := os.ReadDir(outside); len(entries) != 1 {
				t.Errorf("written outside: %v", entries)
			}
		})
	}
}

func TestUnpackMakesWhatWasPacked(t *testing.T) {
	h := member("etc/file", tar.TypeReg, "content")
	h.Mode = 0o4751
	source := archive(t, member("./", tar.TypeDir, ""), member("etc/", tar.TypeDir, ""), h, member("etc/hard", tar.TypeLink, "./etc/file"),
		member("lib", tar.TypeSymlink, "usr/lib"), member("usr/lib/x", tar.TypeReg, "x"), member("lib/y", tar.TypeReg, "through a link inside"),
		member("abs", tar.TypeSymlink, "/etc/file"), member("pipe", tar.TypeFifo, ""),
		member("etc/file2", tar.TypeReg, "old"), member("etc/file2", tar.TypeReg, "new"),
		member("hole", tar.TypeReg, string(make([]byte, 1<<20))+"end"))
	first, second := t.TempDir(), t.TempDir()
	if _, err := unpackTar(t.Context(), bytes.NewReader(source), first, roomy); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"etc/file": "content", "etc/hard": "content", "usr/lib/y": "through a link inside", "etc/file2": "new"} {
		if got, err := os.ReadFile(filepath.Join(first, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	a := pack(t, first)
	if _, err := unpackTar(t.Context(), bytes.NewReader(a), second, roomy); err != nil {
		t.Fatal(err)
	}
	if b := pack(t, second); !bytes.Equal(a, b) {
		t.Error("a tree that was packed and unpacked packs differently")
	}
	info, err := os.Stat(filepath.Join(second, "etc/file"))
	if err != nil || info.Mode() != 0o751|os.ModeSetuid || info.ModTime().Unix() != 1700000000 {
		t.Errorf("%v %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(second, "etc")); err != nil || info.ModTime().Unix() != 1700000000 {
		t.Errorf("%v %v", info, err)
	}
}

func pack(t testing.TB, tree string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := packTree(t.Context(), tree, &b, packing{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLayersHideAndReplace(t *testing.T) {
	dir := t.TempDir()
	u, err := newUnpacker(dir, true, roomy)
	if err != nil {
		t.Fatal(err)
	}
	defer u.close()
	for _, layer := range [][]byte{
		archive(t, member("a/one", tar.TypeReg, "1"), member("a/two", tar.TypeReg, "1"), member("b/deep/x", tar.TypeReg, "1"), member("c/x", tar.TypeReg, "1"),
			member("d", tar.TypeReg, "file"), member("run", tar.TypeSymlink, "/b"), member("dev/null", tar.TypeChar, "")),
		archive(t, member("a/.wh.one", tar.TypeReg, ""), member("b/new", tar.TypeReg, "2"), member("b/.wh..wh..opq", tar.TypeReg, ""),
			member("c", tar.TypeReg, "now a file"), member("d", tar.TypeDir, ""), member("d/x", tar.TypeReg, ""), member("/run/y", tar.TypeReg, "in the root's b")),
	} {
		if err := u.archive(t.Context(), bytes.NewReader(layer)); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.finish(); err != nil {
		t.Fatal(err)
	}
	var got []string
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if want := "a/two b/new b/y c d/x run"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q (%v)", got, want, err)
	}
}

func TestTruncatedArchives(t *testing.T) {
	whole := archive(t, member("a", tar.TypeReg, "content"), member("b", tar.TypeReg, strings.Repeat("x", 2000)))
	end := bytes.Index(whole, []byte("content"))
	for _, n := range []int{512, end + 3, 1024 + 512, len(whole) - 1024, len(whole) - 512 - 1000} {
		_, err := unpackTar(t.Context(), bytes.NewReader(whole[:n]), t.TempDir(), roomy)
		if api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), "truncated") {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	if _, err := unpackTar(t.Context(), io.MultiReader(bytes.NewReader(whole), strings.NewReader("more")), t.TempDir(), roomy); api.KindOf(err) != api.Invalid {
		t.Errorf("garbage after the end: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, member("../evil", tar.TypeReg, "x")))
	f.Add(archive(f, member("out", tar.TypeSymlink, "/tmp"), member("out/evil", tar.TypeReg, "x")))
	f.Add(archive(f, member("a/.wh.b", tar.TypeReg, ""), member("a/.wh..wh..opq", tar.TypeReg, ""), member("x", tar.TypeLink, "a")))
	f.Add(archive(f, member("a", tar.TypeFifo, ""), member("a/b", tar.TypeReg, "x"), member("./", tar.TypeDir, "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, layer := range []bool{false, true} {
			outside := t.TempDir()
			dir := filepath.Join(outside, "tree")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			u, err := newUnpacker(dir, layer, unpackLimits{Bytes: 1 << 20, Entries: 100})
			if err != nil {
				t.Fatal(err)
			}
			err = u.archive(context.Background(), bytes.NewReader(data))
			if err == nil {
				err = u.finish()
			}
			u.close()
			if entries, _ := os.ReadDir(outside); len(entries) != 1 {
				t.Fatalf("written outside: %v (%v)", entries, err)
			}
			_ = os.Chmod(dir, 0o700)
		}
	})
}
