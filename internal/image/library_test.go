package image

import (
	"archive/tar"
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/storage"
	"polder/internal/storage/dir"
	"polder/internal/store"
)

// world is a library with all that it needs.
type world struct {
	dir    string
	store  *store.Store
	engine *operation.Engine
	pool   storage.Pool
	lib    *Library
	users  []string // virtual environments that use every image
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	var err error
	w.store, err = store.Open(t.Context(), store.Options{Dir: filepath.Join(w.dir, "store"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })
	if err := os.Mkdir(filepath.Join(w.dir, "pool"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.pool, err = dir.Open(t.Context(), "test", filepath.Join(w.dir, "pool"))
	if err != nil {
		t.Fatal(err)
	}
	w.boot(t)
	return w
}

// boot makes the engine and the library, as the daemon does when it starts.
func (w *world) boot(t testing.TB) *operation.Engine {
	t.Helper()
	w.engine = operation.New(w.store, "h1", slog.New(slog.DiscardHandler))
	engine := w.engine
	t.Cleanup(func() { _ = engine.Close(context.Background()) })
	var err error
	w.lib, err = NewLibrary(Config{
		Host: "h1", Pool: w.pool, Images: NewTable(w.store), Store: w.store, Engine: w.engine,
		Staging: filepath.Join(w.dir, "staging"), Cache: w.cache(),
		InUse: func(context.Context, string) ([]string, error) { return w.users, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return w.engine
}

func (w *world) cache() string {
	if path := os.Getenv("POLDER_TEST_CACHE"); path != "" {
		return path
	}
	return filepath.Join(w.dir, "cache")
}

// wait gives the end of an operation.
func (w *world) wait(t testing.TB, op api.Operation, err error) api.Operation {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	op, err = w.engine.Wait(t.Context(), op.ID, func(api.Operation) {})
	if err != nil {
		t.Fatal(err)
	}
	return op
}

func (w *world) importFile(t testing.TB, alias string, content []byte) api.Operation {
	t.Helper()
	op, err := w.lib.Import(t.Context(), api.ImageImportRequest{Alias: alias, Filename: "file"}, bytes.NewReader(content))
	return w.wait(t, op, err)
}

// leftovers are what is in the staging directory and the pool.
func (w *world) leftovers(t testing.TB) (names []string) {
	t.Helper()
	for _, pattern := range []string{"staging/*", "pool/bases/*", "pool/bases/.*", "pool/trash/*"} {
		found, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			names = append(names, strings.TrimPrefix(path, w.dir+"/"))
		}
	}
	return names
}

// member of a test archive.
func member(name string, kind byte, content string) tar.Header {
	h := tar.Header{Name: name, Typeflag: kind, Mode: 0o755, Uid: os.Getuid(), Gid: os.Getgid(), ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX}
	switch kind {
	case tar.TypeReg:
		h.Size = int64(len(content))
		h.PAXRecords = map[string]string{"TEST.content": content}
	case tar.TypeSymlink, tar.TypeLink:
		h.Linkname = content
	}
	return h
}

// archive makes a tar archive; content travels in the header.
func archive(t testing.TB, members ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		content := h.PAXRecords["TEST.content"]
		delete(h.PAXRecords, "TEST.content")
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// smallSystem is the least that can be imported.
func smallSystem(t testing.TB) []byte {
	return archive(t,
		member("./", tar.TypeDir, ""), member("./sbin", tar.TypeDir, ""), member("./sbin/init", tar.TypeReg, "#!/bin/sh\n"),
		member("./etc", tar.TypeDir, ""), member("./usr/lib/os-release", tar.TypeReg, "ID=debian\nVERSION_ID=\"13\"\nPRETTY_NAME=\"Debian 13\"\n"),
		member("./etc/os-release", tar.TypeSymlink, "../usr/lib/os-release"),
		member("./etc/copy", tar.TypeLink, "usr/lib/os-release"),
	)
}

func TestImportTwiceAddsAlias(t *testing.T) {
	w := newWorld(t)
	if op := w.importFile(t, "one", smallSystem(t)); op.State != api.OperationDone {
		t.Fatalf("%+v", op)
	}
	if op := w.importFile(t, "other/two", smallSystem(t)); op.State != api.OperationDone {
		t.Fatalf("%+v", op)
	}
	images, err := w.lib.List(t.Context())
	if err != nil || len(images) != 1 {
		t.Fatalf("%+v, %v", images, err)
	}
	i := images[0]
	if len(i.Aliases) != 2 || i.OS != "debian" || i.Release != "13" || i.Description != "Debian 13" || len(i.Models) != 1 || i.Models[0] != api.Container {
		t.Fatalf("%+v", i)
	}
	for _, ref := range []string{"one", "other/two", i.Digest, i.Digest[:19], i.Digest[7:19]} {
		if got, err := w.lib.Resolve(t.Context(), ref); err != nil || got.Digest != i.Digest {
			t.Errorf("resolve %q: %+v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"", "three", i.Digest[7:18], "debian/13"} {
		if _, err := w.lib.Resolve(t.Context(), ref); api.KindOf(err) != api.NotFound || !strings.Contains(err.Error(), "polder image build debian/13") {
			t.Errorf("resolve %q: %v", ref, err)
		}
	}
	w.users = []string{"c1", "c2"}
	if _, err := w.lib.Delete(t.Context(), "one"); api.KindOf(err) != api.Conflict || !strings.Contains(err.Error(), "c1, c2") {
		t.Errorf("delete an image in use: %v", err)
	}
	w.users = nil
	op, err := w.lib.Delete(t.Context(), "one")
	if op := w.wait(t, op, err); op.State != api.OperationDone {
		t.Fatalf("%+v", op)
	}
	if left := w.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestImportKeepsAliasesOfOthers(t *testing.T) {
	w := newWorld(t)
	w.importFile(t, "one", smallSystem(t))
	other := archive(t, member("sbin/init", tar.TypeReg, "other"))
	op := w.importFile(t, "one", other)
	if op.State != api.OperationFailed || op.Error.Kind != api.Exists {
		t.Fatalf("%+v", op)
	}
	if left := w.leftovers(t); len(left) != 1 {
		t.Errorf("bases and files: %q", left)
	}
}
