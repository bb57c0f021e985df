// Package storagetest is the suite that every pool driver must pass, on a real file system.
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"polder/api"
	"polder/internal/storage"
)

// Suite is a driver under test.
type Suite struct {
	// Open opens the pool in a directory; it is called again with the same one for a pool that is opened again.
	Open func(t *testing.T, path string) storage.Pool
	// Dir gives an empty directory to put a pool into.
	Dir func(t *testing.T) string
	// Mount shows a tree volume's root for reading and writing, as whoever runs the VE would mount it. nil: at Path.
	Mount func(t *testing.T, v storage.Volume) (root string, unmount func())
}

// Run runs the whole suite. It needs root and qemu-img, and a call of Churn before.
func (s Suite) Run(t *testing.T) {
	if s.Mount == nil {
		s.Mount = func(_ *testing.T, v storage.Volume) (string, func()) { return v.Path, func() {} }
	}
	s.RunUnmounted(t)
	s.RunTransfer(t)
	for name, test := range map[string]func(*testing.T){
		"Clone":          s.clone,
		"CloneIsPrivate": s.cloneIsPrivate,
		"Copy":           s.copyVolume,
		"DeleteVolume":   s.deleteVolume,
		"DeleteBase":     s.deleteBase,
		"Killed":         s.killed,
		"Usage":          s.usage,
	} {
		t.Run(name, test)
	}
}

// RunUnmounted runs the part that looks into no volume.
func (s Suite) RunUnmounted(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"AddBase":         s.addBase,
		"AddBaseFails":    s.addBaseFails,
		"AddBaseAtOnce":   s.addBaseAtOnce,
		"BadIDs":          s.badIDs,
		"CancelledFill":   s.cancelled,
		"CloneManyAtOnce": s.cloneManyAtOnce,
		"CloneSizes":      s.cloneSizes,
		"DiskIsReachable": s.diskIsReachable,
		"MissingThings":   s.missing,
		"NothingIsLeft":   s.nothingLeft,
		"OpenAgain":       s.tidy,
		"Space":           s.space,
	} {
		t.Run(name, test)
	}
}

const (
	baseID   = "sha256:0123456789abcdef"
	diskSize = 4 * api.MiB
)

// fillTree makes a little root file system.
func fillTree(_ context.Context, path string) error {
	for _, dir := range []string{"etc", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(path, "etc/hostname"), []byte("base\n"), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(path, "usr/bin/program"), bytes.Repeat([]byte("program"), 30000), 0o755)
}

// fillDisk makes a little raw disk.
func fillDisk(_ context.Context, path string) error {
	return os.WriteFile(path, bytes.Repeat([]byte{0xd1}, int(diskSize)), 0o600)
}

// mustNotFill is given where the base is there already.
func mustNotFill(context.Context, string) error {
	return errors.New("fill was called for a base that exists")
}

func (s Suite) pool(t *testing.T) storage.Pool { return s.Open(t, s.Dir(t)) }

// poolWithBases has the base baseID of either kind.
func (s Suite) poolWithBases(t *testing.T) storage.Pool {
	t.Helper()
	p := s.pool(t)
	must(t, p.AddBase(t.Context(), baseID, storage.Tree, fillTree))
	must(t, p.AddBase(t.Context(), baseID, storage.Disk, fillDisk))
	return p
}

func (s Suite) addBase(t *testing.T) {
	p := s.poolWithBases(t)
	tree, err := p.Base(t.Context(), baseID, storage.Tree)
	must(t, err)
	if got := read(t, filepath.Join(tree, "etc/hostname")); got != "base\n" {
		t.Errorf("the base has %q", got)
	}
	if strings.ContainsAny(tree, ":,") {
		t.Errorf("path %s cannot be a mount option", tree)
	}
	disk, err := p.Base(t.Context(), baseID, storage.Disk)
	must(t, err)
	if info, err := os.Stat(disk); err != nil || info.Size() != int64(diskSize) || info.Mode().Perm()&0o222 != 0 {
		t.Errorf("the base disk is %v, %v", info, err)
	}
	must(t, p.AddBase(t.Context(), baseID, storage.Tree, mustNotFill))
	must(t, p.AddBase(t.Context(), baseID, storage.Disk, mustNotFill))
}

func (s Suite) addBaseFails(t *testing.T) {
	p := s.pool(t)
	broken := errors.New("broken image")
	for kind, fill := range fills() {
		err := p.AddBase(t.Context(), "b", kind, func(ctx context.Context, path string) error {
			must(t, fill(ctx, path))
			return broken
		})
		if !errors.Is(err, broken) {
			t.Errorf("%s: got %v", kind, err)
		}
		_, err = p.Base(t.Context(), "b", kind)
		wantKind(t, err, api.NotFound)
		full := p.AddBase(t.Context(), "b", kind, func(context.Context, string) error {
			return &os.PathError{Op: "write", Path: "x", Err: errNoSpace}
		})
		wantKind(t, full, api.Exhausted)
		if full != nil && !strings.Contains(full.Error(), "is full: delete") {
			t.Errorf("no advice in %q", full)
		}
		must(t, p.AddBase(t.Context(), "b", kind, fill))
	}
	wantEmptyTrash(t, p)
}

func fills() map[storage.Kind]func(context.Context, string) error {
	return map[storage.Kind]func(context.Context, string) error{storage.Tree: fillTree, storage.Disk: fillDisk}
}

func (s Suite) addBaseAtOnce(t *testing.T) {
	p := s.pool(t)
	var filled sync.Map
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			err := p.AddBase(t.Context(), "b", storage.Tree, func(ctx context.Context, path string) error {
				filled.Store(i, true)
				if _, err := p.Base(ctx, "b", storage.Tree); api.KindOf(err) != api.NotFound {
					t.Errorf("a half-made base can be seen: %v", err)
				}
				return fillTree(ctx, path)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	count := 0
	filled.Range(func(any, any) bool { count++; return true })
	if count != 1 {
		t.Errorf("fill was called %d times", count)
	}
}

func (s Suite) cancelled(t *testing.T) {
	p := s.pool(t)
	for kind, fill := range fills() {
		ctx, cancel := context.WithCancel(t.Context())
		err := p.AddBase(ctx, "b", kind, func(ctx context.Context, path string) error {
			defer cancel()
			return fill(ctx, path)
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v", kind, err)
		}
		_, err = p.Base(t.Context(), "b", kind)
		wantKind(t, err, api.NotFound)
	}
	wantEmptyTrash(t, p)
}

func (s Suite) badIDs(t *testing.T) {
	p := s.poolWithBases(t)
	for _, id := range []string{"", ".", "..", "../x", "a/b", "-x", ".x", "a b", "a,b", "a\nb", "a%3Ab", strings.Repeat("x", 201)} {
		wantKind(t, p.AddBase(t.Context(), id, storage.Tree, mustNotFill), api.Invalid)
		_, err := p.Clone(t.Context(), baseID, storage.Tree, id, 0)
		wantKind(t, err, api.Invalid)
		wantKind(t, p.Delete(t.Context(), id), api.Invalid)
	}
	_, err := p.Clone(t.Context(), baseID, "tape", "v", 0)
	wantKind(t, err, api.Invalid)
}

func (s Suite) missing(t *testing.T) {
	p := s.poolWithBases(t)
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		_, err := p.Base(t.Context(), "nope", kind)
		wantKind(t, err, api.NotFound)
		_, err = p.Clone(t.Context(), "nope", kind, "v", 0)
		wantKind(t, err, api.NotFound)
		must(t, p.DeleteBase(t.Context(), "nope", kind))
	}
	_, err := p.Volume(t.Context(), "v")
	wantKind(t, err, api.NotFound)
	_, err = p.Usage(t.Context(), "v")
	wantKind(t, err, api.NotFound)
	must(t, p.Delete(t.Context(), "v"))
}

func (s Suite) space(t *testing.T) {
	p := s.pool(t)
	total, free, err := p.Space(t.Context())
	if err != nil || total <= 0 || free <= 0 || free > total {
		t.Errorf("total %s, free %s, %v", total, free, err)
	}
	if ok, why := p.Enforces(t.Context()); ok == (why != "") {
		t.Errorf("enforces %v: %q", ok, why)
	}
	if p.Driver() == "" || !filepath.IsAbs(p.Path()) {
		t.Errorf("driver %q, path %q", p.Driver(), p.Path())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind api.Kind) {
	t.Helper()
	if api.KindOf(err) != kind {
		t.Errorf("got %v (%s), want %s", err, api.KindOf(err), kind)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

func wantEmptyTrash(t *testing.T, p storage.Pool) {
	t.Helper()
	left, err := left(p)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// left lists what half-made or deleted things take in a pool.
func left(p storage.Pool) ([]string, error) {
	trash, err := filepath.Glob(filepath.Join(p.Path(), "trash", "*"))
	if err != nil {
		return nil, err
	}
	half, err := filepath.Glob(filepath.Join(p.Path(), "*", "*", ".*"))
	return append(trash, half...), err
}

func id(i int) string { return fmt.Sprintf("v%d", i) }
