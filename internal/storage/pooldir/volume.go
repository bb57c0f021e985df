package pooldir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"polder/api"
	"polder/internal/storage"
)

// VolumeDir is where a volume is kept, whether or not it is there.
func (p *Pool) VolumeDir(id string) string { return filepath.Join(p.path, "volumes", FileName(id)) }

// Clone is storage.Pool's.
func (p *Pool) Clone(ctx context.Context, base string, kind storage.Kind, id string, size api.Bytes) (storage.Volume, error) {
	if err := checkID(id); err != nil {
		return storage.Volume{}, err
	}
	dir := p.VolumeDir(id)
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return storage.Volume{}, err
	}
	defer release()
	p.inUse.RLock()
	defer p.inUse.RUnlock()
	v, err := p.Volume(ctx, id)
	switch {
	case err == nil && v.Kind != kind:
		return storage.Volume{}, api.Errorf(api.Exists, "clone volume %s in pool %q: it is there already as a %s", id, p.name, v.Kind)
	case err == nil || api.KindOf(err) != api.NotFound:
		return v, err
	}
	meta, payload, err := p.childOf(ctx, base, kind, size)
	if err != nil {
		return storage.Volume{}, fmt.Errorf("clone volume %s: %w", id, err)
	}
	if err := p.fresh(ctx, dir, meta.Kind, func() error {
		if kind == storage.Tree {
			return p.driver.CloneTree(ctx, payload, dir, meta)
		}
		return p.driver.CloneDisk(ctx, payload, dir, meta)
	}); err != nil {
		return storage.Volume{}, p.Explain(fmt.Errorf("clone volume %s in pool %q: %w", id, p.name, err))
	}
	return p.Volume(ctx, id)
}

// Copy is storage.Pool's.
func (p *Pool) Copy(ctx context.Context, from, id string) (storage.Volume, error) {
	for _, name := range []string{from, id} {
		if err := checkID(name); err != nil {
			return storage.Volume{}, err
		}
	}
	dir := p.VolumeDir(id)
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return storage.Volume{}, err
	}
	defer release()
	p.inUse.RLock()
	defer p.inUse.RUnlock()
	if v, err := p.Volume(ctx, id); err == nil || api.KindOf(err) != api.NotFound {
		return v, err
	}
	source, err := p.Volume(ctx, from)
	if err != nil {
		return storage.Volume{}, fmt.Errorf("copy volume %s: %w", from, err)
	}
	meta, err := ReadMeta(p.VolumeDir(from))
	if err != nil {
		return storage.Volume{}, fmt.Errorf("copy volume %s: %w", from, err)
	}
	if err := p.fresh(ctx, dir, meta.Kind, func() error {
		if meta.Kind == storage.Tree {
			return p.driver.CopyTree(ctx, source.Path, dir, meta)
		}
		return p.driver.CopyDisk(ctx, source.Path, dir, meta)
	}); err != nil {
		return storage.Volume{}, p.Explain(fmt.Errorf("copy volume %s of pool %q to %s: %w", from, p.name, id, err))
	}
	return p.Volume(ctx, id)
}

// childOf settles the meta of a new child of a base, and finds the base.
func (p *Pool) childOf(ctx context.Context, base string, kind storage.Kind, size api.Bytes) (Meta, string, error) {
	payload, err := p.Base(ctx, base, kind)
	if err != nil {
		return Meta{}, "", err
	}
	parent, err := ReadMeta(filepath.Dir(payload))
	if err != nil {
		return Meta{}, "", err
	}
	if size < 0 || size > 0 && size < parent.Size {
		return Meta{}, "", api.Errorf(api.Invalid, "size %s is less than the %s that base %s takes: ask for at least that", size, parent.Size, base)
	}
	if size == 0 && kind == storage.Disk {
		size = parent.Size
	}
	return Meta{Kind: kind, Base: base, Size: size}, payload, nil
}

// fresh makes a volume's directory anew and fills it; after an error nothing remains.
func (p *Pool) fresh(ctx context.Context, dir string, kind storage.Kind, fill func() error) error {
	err := p.discard(ctx, dir) // of an earlier call that was cut off
	if err == nil {
		err = makeDir(dir, kind)
	}
	if err == nil {
		err = fill()
	}
	if err != nil {
		_ = p.discard(context.WithoutCancel(ctx), dir)
	}
	return err
}

// Volume is storage.Pool's.
func (p *Pool) Volume(_ context.Context, id string) (storage.Volume, error) {
	if err := checkID(id); err != nil {
		return storage.Volume{}, err
	}
	dir := p.VolumeDir(id)
	payload := payloadIn(dir)
	if payload == "" {
		return storage.Volume{}, api.Errorf(api.NotFound, "pool %q has no volume %s", p.name, id)
	}
	meta, err := ReadMeta(dir)
	if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
		return storage.Volume{}, api.Errorf(api.NotFound, "pool %q has no volume %s", p.name, id)
	} else if err != nil {
		return storage.Volume{}, fmt.Errorf("volume %s of pool %q: %w", id, p.name, err)
	}
	v := storage.Volume{ID: id, Kind: meta.Kind, Path: filepath.Join(dir, payload), Size: meta.Size}
	switch payload {
	case RawName:
		v.Format = "raw"
	case QCOW2Name:
		v.Format = "qcow2"
	}
	p.driver.Complete(&v, dir, meta)
	return v, nil
}

// payloadIn finds the payload of a base or volume; "": it is half-made or not there.
func payloadIn(dir string) string {
	for _, name := range []string{TreeName, RawName, QCOW2Name} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return name
		}
	}
	return ""
}

// Volumes is storage.Pool's; they come sorted by id.
func (p *Pool) Volumes(ctx context.Context) ([]storage.Volume, error) {
	names, err := p.names("volumes")
	if err != nil {
		return nil, err
	}
	list := []storage.Volume{}
	for _, name := range names {
		v, err := p.Volume(ctx, idOf(name))
		if api.KindOf(err) == api.NotFound {
			continue // half-made, or deleted meanwhile
		} else if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// Delete is storage.Pool's.
func (p *Pool) Delete(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	dir := p.VolumeDir(id)
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return err
	}
	defer release()
	trash, err := p.toTrash(dir)
	if err != nil {
		return p.Explain(fmt.Errorf("delete volume %s of pool %q: %w", id, p.name, err))
	}
	if trash == "" {
		return nil
	}
	if err := p.driver.Purge(ctx, trash); err != nil {
		return fmt.Errorf("delete volume %s of pool %q: %w", id, p.name, err)
	}
	return nil
}
