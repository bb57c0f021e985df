package pooldir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"polder/api"
	"polder/internal/storage"
)

func TestFileNamesAreSafeAndReversible(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[a-zA-Z0-9@+_][a-zA-Z0-9._:@+-]{0,60}`).Draw(t, "id")
		if err := checkID(id); err != nil {
			t.Fatal(err)
		}
		name := FileName(id)
		if idOf(name) != id || filepath.Base(name) != name || name != filepath.Clean(name) {
			t.Errorf("%q became %q and %q", id, name, idOf(name))
		}
	})
}

func FuzzCheckID(f *testing.F) {
	f.Add("sha256:abc")
	f.Add("../x")
	f.Add("a\x00b")
	f.Fuzz(func(t *testing.T, id string) {
		if checkID(id) == nil && (filepath.Dir(filepath.Join("/pool", FileName(id))) != "/pool" || idOf(FileName(id)) != id) {
			t.Errorf("%q is accepted", id)
		}
	})
}

func TestMeta(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadMeta(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	want := Meta{Version: 1, Kind: storage.Tree, Base: "sha256:abc", Size: api.GiB, QGroup: 1<<48 | 5}
	for range 2 { // replacing is as good as making
		if err := WriteMeta(dir, want); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ReadMeta(dir); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for text, kind := range map[string]api.Kind{`{"v":2}`: api.Unsupported, "rubbish": api.Internal} {
		dir := t.TempDir()
		if err := os.Symlink(text, filepath.Join(dir, "meta")); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadMeta(dir); api.KindOf(err) != kind {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

func TestPathsThatNoMountTakes(t *testing.T) {
	for _, name := range []string{"a:b", "a,b", `a\b`} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := New("p", path, nil); api.KindOf(err) != api.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestLocks(t *testing.T) {
	var l locks
	release, err := l.acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.acquire(t.Context(), "b") // another key does not wait
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.acquire(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	inside := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			release, err := l.acquire(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			inside++ // the race detector, and the sum, watch over this
			release()
		})
	}
	if inside != 0 {
		t.Error("somebody got a lock that was held")
	}
	release()
	wg.Wait()
	if inside != 8 || len(l.held) != 0 {
		t.Errorf("%d got it, %d locks are left", inside, len(l.held))
	}
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/a\040b\134040`); got != `/a b\040` {
		t.Errorf("got %q", got)
	}
}

func TestTreeUsageCountsHardLinksOnce(t *testing.T) {
	dir := t.TempDir()
	empty, err := TreeUsage(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	got, err := TreeUsage(t.Context(), dir)
	if err != nil || got-empty < api.MiB || got-empty > api.MiB+64*api.KiB {
		t.Errorf("got %s, %v", got-empty, err)
	}
}
