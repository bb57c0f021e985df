package pooldir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"polder/api"
	"polder/internal/storage"
)

func basePayload(kind storage.Kind) (string, error) {
	switch kind {
	case storage.Tree:
		return TreeName, nil
	case storage.Disk:
		return RawName, nil
	}
	return "", api.Errorf(api.Invalid, "storage kind %q: want tree or disk", kind)
}

// baseDir is where a base is kept, whether or not it is there.
func (p *Pool) baseDir(id string, kind storage.Kind) (dir, payload string, err error) {
	name, err := basePayload(kind)
	if err == nil {
		err = checkID(id)
	}
	dir = filepath.Join(p.path, "bases", FileName(id)+"."+string(kind))
	return dir, filepath.Join(dir, name), err
}

// AddBase is storage.Pool's.
func (p *Pool) AddBase(ctx context.Context, id string, kind storage.Kind, fill func(ctx context.Context, path string) error) error {
	return p.addBase(ctx, id, kind, rand.Text(), fill)
}

func (p *Pool) addBase(ctx context.Context, id string, kind storage.Kind, origin string,
	fill func(ctx context.Context, path string) error,
) (err error) {
	dir, payload, err := p.baseDir(id, kind)
	if err != nil {
		return err
	}
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return err
	}
	defer release()
	if _, err := os.Lstat(payload); err == nil {
		return nil
	}
	defer func() {
		if err != nil {
			err = p.Explain(fmt.Errorf("add base %s to pool %q: %w", id, p.name, err))
		}
	}()
	complete := false
	// Deferred, so that a fill that panics leaves nothing either.
	defer func() {
		if !complete {
			_ = p.discard(context.WithoutCancel(ctx), dir)
		}
	}()
	if err := p.discard(ctx, dir); err != nil { // of an earlier call that was cut off
		return err
	}
	if err := makeDir(dir, kind); err != nil {
		return err
	}
	if err := p.fillBase(ctx, dir, payload, Meta{Kind: kind, Origin: origin}, fill); err != nil {
		return err
	}
	complete = true
	return nil
}

func (p *Pool) fillBase(ctx context.Context, dir, payload string, meta Meta, fill func(ctx context.Context, path string) error) error {
	half := filepath.Join(dir, ".new."+filepath.Base(payload))
	var err error
	if meta.Kind == storage.Tree {
		err = p.driver.MakeTree(half)
	} else {
		err = setNoCOW(dir)
	}
	if err != nil {
		return err
	}
	if err := fill(ctx, half); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if meta.Size, err = Size(half); err != nil {
		return err
	}
	if err := WriteMeta(dir, meta); err != nil {
		return err
	}
	if err := p.driver.Seal(half, meta.Kind); err != nil {
		return err
	}
	if err := syncFS(dir); err != nil {
		return err
	}
	if err := os.Rename(half, payload); err != nil {
		return err
	}
	return Sync(dir)
}

// makeDir makes the directory of a base or a volume. Trees have setuid programs in them that no user of the host may
// reach; a disk must be reached by the VE's own user.
func makeDir(dir string, kind storage.Kind) error {
	mode := os.FileMode(0o700)
	if kind == storage.Disk {
		mode = 0o711
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, mode)
}

// Base is storage.Pool's.
func (p *Pool) Base(_ context.Context, id string, kind storage.Kind) (string, error) {
	_, payload, err := p.baseDir(id, kind)
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(payload); errors.Is(err, fs.ErrNotExist) {
		return "", api.Errorf(api.NotFound, "pool %q has no %s base %s", p.name, kind, id)
	} else if err != nil {
		return "", fmt.Errorf("base %s of pool %q: %w", id, p.name, err)
	}
	return payload, nil
}

// DeleteBase is storage.Pool's.
func (p *Pool) DeleteBase(ctx context.Context, id string, kind storage.Kind) error {
	dir, _, err := p.baseDir(id, kind)
	if err != nil {
		return err
	}
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return err
	}
	defer release()
	p.inUse.Lock()
	if p.driver.NeedsBase(kind) {
		var user string
		if user, err = p.userOf(id, kind); err == nil && user != "" {
			err = api.Errorf(api.Conflict, "delete base %s of pool %q: volume %s needs it: delete that first", id, p.name, user)
		}
	}
	var trash string
	if err == nil {
		trash, err = p.toTrash(dir)
	}
	p.inUse.Unlock()
	if err != nil || trash == "" {
		return err
	}
	return p.driver.Purge(ctx, trash)
}

// userOf finds a volume, also a half-made one, whose base this is.
func (p *Pool) userOf(id string, kind storage.Kind) (string, error) {
	names, err := p.names("volumes")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		meta, err := ReadMeta(filepath.Join(p.path, "volumes", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return "", err
		}
		if meta.Base == id && meta.Kind == kind {
			return idOf(name), nil
		}
	}
	return "", nil
}
