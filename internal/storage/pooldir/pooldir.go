// Package pooldir keeps the books of a pool that lives in a directory: which bases and volumes there are, how they come
// into being and vanish at one instant, and what is left over of calls that were cut off. Drivers embed its Pool and
// tell it, as a Driver, how their file system makes trees and copies.
//
// Layout, below the pool's path:
//
//	bases/ID.KIND/     root (a tree) or disk.raw, and meta
//	volumes/ID/        root (a tree), disk.raw or disk.qcow2, and meta; more, as the driver likes
//	trash/RANDOM/      a base or volume that was deleted, until it is gone
//
// A base or volume is there if and only if its payload (root, disk.*) is: the payload is made last and at once, by a
// rename or a snapshot. Names that begin with a dot are half-made, or kept while a volume is sent to another host. meta is a symbolic link whose target is JSON: unlike
// a file's content it is metadata, and so reaches the disk in order with the rest and without an fsync of its own.
//
// Safe for concurrent use within one process; two processes must not open one pool.
package pooldir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
)

// Names of payloads.
const (
	TreeName  = "root"
	RawName   = "disk.raw"
	QCOW2Name = "disk.qcow2"
)

// Driver is what differs between file systems. Paths are absolute.
type Driver interface {
	// MakeTree makes an empty tree at path, which is not there yet.
	MakeTree(path string) error
	// Seal makes a complete base payload at path read-only, as far as the driver can. The payload is renamed, within
	// its directory, afterwards.
	Seal(path string, kind storage.Kind) error
	// CloneTree makes dir/root a child of the base tree at base. It must appear at once, be durable, and be the last
	// thing made. meta is free to be changed before it is written with Pool.WriteMeta.
	CloneTree(ctx context.Context, base, dir string, meta Meta) error
	// CloneDisk makes dir/disk.raw or dir/disk.qcow2 a child of the base disk at base, likewise.
	CloneDisk(ctx context.Context, base, dir string, meta Meta) error
	// CopyTree makes dir/root, likewise, a tree of its own with what the one at from, a volume's payload, has now.
	CopyTree(ctx context.Context, from, dir string, meta Meta) error
	// CopyDisk does so with a disk, of the same format.
	CopyDisk(ctx context.Context, from, dir string, meta Meta) error
	// NeedsBase says whether volumes of this kind lose their data when their base is deleted.
	NeedsBase(kind storage.Kind) bool
	// Complete adds to a volume in dir what only the driver knows (Lower, Upper, Work).
	Complete(v *storage.Volume, dir string, meta Meta)
	// Purge removes dir and all in it; meta is to be the last but dir itself.
	Purge(ctx context.Context, dir string) error
	// Drop removes path, something beside a volume's payload, and all in it; meta is the volume's.
	Drop(ctx context.Context, path string, meta Meta) error

	Trees
}

// Pool does the part of storage.Pool that is alike for all drivers.
type Pool struct {
	name, path string
	driver     Driver
	locks      locks
	// inUse orders Clone (readers) and DeleteBase: a base is not deleted between the check for volumes and the rename.
	inUse     sync.RWMutex
	transfers transfers
}

// New makes the pool's directories below path, which must exist, unless they are there.
func New(name, path string, driver Driver) (*Pool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", name, err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("open pool %q: %w", name, err)
	}
	if strings.ContainsAny(path, ":,\\\n") {
		return nil, api.Errorf(api.Invalid, "open pool %q: the path %q has a colon, comma or backslash, which mount options cannot carry: choose another", name, path)
	}
	p := &Pool{name: name, path: path, driver: driver}
	// 0711: a VE's own user opens its disk by path, but nobody can list what there is.
	for dir, mode := range map[string]os.FileMode{"bases": 0o711, "volumes": 0o711, "trash": 0o700} {
		dir = filepath.Join(path, dir)
		if err := os.Mkdir(dir, mode); err != nil && !os.IsExist(err) {
			return nil, p.Explain(fmt.Errorf("open pool %q: %w", name, err))
		}
		if err := os.Chmod(dir, mode); err != nil {
			return nil, fmt.Errorf("open pool %q: %w", name, err)
		}
	}
	return p, nil
}

// Name is the pool's name, for messages.
func (p *Pool) Name() string { return p.name }

// Path is the directory that holds the pool.
func (p *Pool) Path() string { return p.path }

// Space is the size of the file system and what an ordinary user could still write.
func (p *Pool) Space(context.Context) (total, free api.Bytes, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(p.path, &s); err != nil {
		return 0, 0, fmt.Errorf("space of pool %q: statfs %s: %w", p.name, p.path, err)
	}
	return api.Bytes(s.Blocks) * api.Bytes(s.Bsize), api.Bytes(s.Bavail) * api.Bytes(s.Bsize), nil
}

// locks is a lock per key.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock // guarded by mu
}

type lock struct {
	token chan struct{} // holds one element while the lock is free
	users int           // guarded by locks.mu
}

// acquire waits for the lock of key, or for ctx.
func (l *locks) acquire(ctx context.Context, key string) (release func(), err error) {
	l.mu.Lock()
	k := l.held[key]
	if k == nil {
		k = &lock{token: make(chan struct{}, 1)}
		k.token <- struct{}{}
		if l.held == nil {
			l.held = map[string]*lock{}
		}
		l.held[key] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, key)
		}
	}
	select {
	case <-k.token:
		return func() { k.token <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
