package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"polder/api"
	"polder/internal/operation"
	"polder/internal/storage"
	"polder/internal/storage/dir"
)

// peers are the libraries of other hosts.
type peers struct {
	libraries map[string]*Library
	down      []string
	opened    atomic.Int32
	// break is applied to what comes.
	spoil func([]byte) []byte
}

func (p *peers) Reachable(context.Context) ([]string, error) {
	var names []string
	for name := range p.libraries {
		if !slices.Contains(p.down, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func (p *peers) Open(ctx context.Context, host, digest string, kind storage.Kind, form string) (io.ReadCloser, error) {
	p.opened.Add(1)
	var all bytes.Buffer
	if err := p.libraries[host].Serve(ctx, digest, kind, form, &all); err != nil {
		return nil, err
	}
	content := all.Bytes()
	if p.spoil != nil {
		content = p.spoil(content)
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

// otherFormat is a pool that can't read what others of its driver send.
type otherFormat struct{ storage.Pool }

func (otherFormat) TransferFormat() string { return "other-1" }

// twoHosts: h1 has the image "small"; h2 has nothing.
func twoHosts(t *testing.T) (w *world, one, two *Library, p *peers) {
	t.Helper()
	w = newWorld(t)
	if op := w.importFile(t, "small", smallSystem(t)); op.State != api.OperationDone {
		t.Fatalf("%+v", op.Error)
	}
	path := filepath.Join(w.dir, "pool2")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	pool, err := dir.Open(t.Context(), "two", path)
	if err != nil {
		t.Fatal(err)
	}
	p = &peers{libraries: map[string]*Library{"h1": w.lib}}
	engine := operation.New(w.store, "h2", slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = engine.Close(context.Background()) })
	two, err = NewLibrary(Config{
		Host: "h2", Pool: pool, Images: NewTable(w.store), Store: w.store, Engine: engine, Peers: p, Log: slog.New(slog.DiscardHandler),
		Staging: filepath.Join(w.dir, "staging2"), Cache: filepath.Join(w.dir, "cache2"),
		InUse: func(context.Context, string) ([]string, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return w, w.lib, two, p
}

func digestOfSmall(t *testing.T, l *Library) string {
	t.Helper()
	image, err := l.Resolve(t.Context(), "small")
	if err != nil {
		t.Fatal(err)
	}
	return image.Digest
}

func hostsOf(t *testing.T, l *Library, digest string) string {
	t.Helper()
	image, err := l.Resolve(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(image.Hosts, " ")
}

// wantFiles compares what two pools have of a tree, by its archive.
func wantFiles(t *testing.T, one, two *Library, digest string) {
	t.Helper()
	var archives [2]bytes.Buffer
	for i, l := range []*Library{one, two} {
		path, err := l.Pool.Base(t.Context(), baseID(digest), storage.Tree)
		if err != nil {
			t.Fatal(err)
		}
		if err := packTree(t.Context(), path, &archives[i], packing{}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0].Bytes(), archives[1].Bytes()) {
		t.Error("the trees differ")
	}
}

func TestEnsureFetches(t *testing.T) {
	for _, form := range []string{"native", "tar"} {
		t.Run(form, func(t *testing.T) {
			_, one, two, p := twoHosts(t)
			if form == "tar" {
				two.Pool = otherFormat{two.Pool}
			}
			digest := digestOfSmall(t, one)
			if hosts := hostsOf(t, one, digest); hosts != "h1" {
				t.Errorf("hosts %q", hosts)
			}
			var wg sync.WaitGroup
			var seen atomic.Int64
			for range 5 {
				wg.Go(func() {
					err := two.Ensure(t.Context(), digest, storage.Tree, func(done, _ int64, _ string) { seen.Store(done) })
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := p.opened.Load(); n != 1 || seen.Load() == 0 {
				t.Errorf("%d transfers, %d bytes seen", n, seen.Load())
			}
			if err := two.Ensure(t.Context(), digest, storage.Tree, nil); err != nil || p.opened.Load() != 1 {
				t.Errorf("%d transfers, %v", p.opened.Load(), err)
			}
			if hosts := hostsOf(t, one, digest); hosts != "h1 h2" {
				t.Errorf("hosts %q", hosts)
			}
			wantFiles(t, one, two, digest)
		})
	}
}

func TestEnsureCutOff(t *testing.T) {
	for _, form := range []string{"native", "tar"} {
		t.Run(form, func(t *testing.T) {
			w, one, two, p := twoHosts(t)
			if form == "tar" {
				two.Pool = otherFormat{two.Pool}
			}
			digest := digestOfSmall(t, one)
			for range 20 {
				p.spoil = func(all []byte) []byte { return all[:rand.IntN(len(all))] }
				err := two.Ensure(t.Context(), digest, storage.Tree, nil)
				if kind := api.KindOf(err); kind != api.Unavailable && kind != api.Invalid {
					t.Errorf("got %v", err)
				}
				p.spoil = func(all []byte) []byte {
					all[len(all)/2+rand.IntN(len(all)/2)] ^= 1
					return all
				}
				if err := two.Ensure(t.Context(), digest, storage.Tree, nil); err == nil {
					t.Error("damage was not seen")
				}
			}
			for _, pattern := range []string{"pool2/bases/*", "pool2/trash/*", "staging2/*"} {
				if left, _ := filepath.Glob(filepath.Join(w.dir, pattern)); len(left) > 0 {
					t.Errorf("left over: %v", left)
				}
			}
			if hosts := hostsOf(t, one, digest); hosts != "h1" {
				t.Errorf("hosts %q", hosts)
			}
			p.spoil = nil
			if err := two.Ensure(t.Context(), digest, storage.Tree, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestEnsureWithoutSource(t *testing.T) {
	_, one, two, p := twoHosts(t)
	digest := digestOfSmall(t, one)
	p.down = []string{"h1"}
	err := two.Ensure(t.Context(), digest, storage.Tree, nil)
	if api.KindOf(err) != api.Unavailable || !strings.Contains(err.Error(), "do not answer: h1") {
		t.Errorf("got %v", err)
	}
	if err := two.Ensure(t.Context(), digest, storage.Disk, nil); api.KindOf(err) != api.Unsupported {
		t.Errorf("got %v", err)
	}
	if err := two.Ensure(t.Context(), "sha256:none", storage.Tree, nil); api.KindOf(err) != api.NotFound {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.down = nil
	if err := two.Ensure(ctx, digest, storage.Tree, nil); !errors.Is(err, context.Canceled) && api.KindOf(err) != api.Cancelled {
		t.Errorf("got %v", err)
	}
}

func TestReconcile(t *testing.T) {
	w, one, two, _ := twoHosts(t)
	digest := digestOfSmall(t, one)
	if err := two.Ensure(t.Context(), digest, storage.Tree, nil); err != nil {
		t.Fatal(err)
	}
	// A host that lost its pool, and one whose record does not say what it has.
	if err := two.Pool.DeleteBase(t.Context(), baseID(digest), storage.Tree); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Images.Modify(t.Context(), digest, func(r *Record) error {
		r.setOn(storage.Tree, "h1", false)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Library{one, two, one} {
		if err := l.Reconcile(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if hosts := hostsOf(t, one, digest); hosts != "h1" {
		t.Errorf("hosts %q", hosts)
	}
	// Deleted on one host, the image goes from all.
	if err := two.Ensure(t.Context(), digest, storage.Tree, nil); err != nil {
		t.Fatal(err)
	}
	op, err := one.Delete(t.Context(), "small")
	if op = w.wait(t, op, err); op.State != api.OperationDone {
		t.Fatalf("%+v", op.Error)
	}
	if _, err := two.Pool.Base(t.Context(), baseID(digest), storage.Tree); err != nil {
		t.Error(err)
	}
	if err := two.Reconcile(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := two.Pool.Base(t.Context(), baseID(digest), storage.Tree); api.KindOf(err) != api.NotFound {
		t.Errorf("the base is still there: %v", err)
	}
}

// A disk goes to a pool of another driver too, holes and all.
func TestDiskInAnotherForm(t *testing.T) {
	w, one, two, _ := twoHosts(t)
	two.Pool = otherFormat{two.Pool}
	const size = 3<<20 + 512
	record := Record{Image: api.Image{Digest: "sha256:disk", DiskBytes: size}, Disk: true, DiskOn: []string{"h1"}}
	if _, err := one.Images.Create(t.Context(), record.Image.Digest, record); err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	copy(content[1<<20:], "content")
	err := w.pool.AddBase(t.Context(), "sha256-disk", storage.Disk, func(_ context.Context, path string) error { return os.WriteFile(path, content, 0o600) })
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Ensure(t.Context(), "sha256:disk", storage.Disk, nil); err != nil {
		t.Fatal(err)
	}
	path, err := two.Pool.Base(t.Context(), "sha256-disk", storage.Disk)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A caller that goes away leaves the transfer to one that waits for it.
func TestFlightIsTakenOver(t *testing.T) {
	var f flights
	ctx, cancel := context.WithCancel(t.Context())
	began := make(chan bool)
	first := make(chan error, 1)
	go func() {
		first <- f.do(ctx, "x", nil, func(ctx context.Context, _ Progress) error {
			close(began)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	<-began
	second := make(chan error, 1)
	go func() {
		second <- f.do(t.Context(), "x", nil, func(context.Context, Progress) error { return nil })
	}()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
}

func FuzzChunks(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01x\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := newChunkReader(bytes.NewReader(in), func(int64) {})
		if n, err := io.Copy(io.Discard, c); err == nil && n > int64(len(in)) {
			t.Errorf("%d bytes from %d", n, len(in))
		}
	})
}
