package pooldir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
)

const metaVersion = 1

// Meta is what a pool writes down about a base or a volume.
type Meta struct {
	Version int          `json:"v"`
	Kind    storage.Kind `json:"kind"`
	Base    string       `json:"base,omitempty"` // of a volume: its base's id
	// Size of a base: bytes that it takes (tree) or its virtual size (disk); of a volume: its limit or virtual size.
	Size api.Bytes `json:"size"`
	// QGroup is the btrfs quota group that a volume's subvolumes are counted in; 0: none.
	QGroup uint64 `json:"qgroup,omitempty"`
	// Limit of QGroup in bytes, as it is when the volume is not being sent; 0: none, or not written down.
	Limit api.Bytes `json:"limit,omitempty"`
	// Origin of a base is equal in all pools whose base was sent from one another.
	Origin string `json:"origin,omitempty"`
}

// WriteMeta replaces the meta of dir.
func WriteMeta(dir string, m Meta) error {
	m.Version = metaVersion
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, ".meta.new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(string(text), tmp); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "meta"))
}

// ReadMeta reads the meta of dir.
func ReadMeta(dir string) (Meta, error) {
	var m Meta
	text, err := os.Readlink(filepath.Join(dir, "meta"))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return m, fmt.Errorf("read %s/meta: %w", dir, err)
	}
	if m.Version > metaVersion {
		return m, api.Errorf(api.Unsupported, "read %s/meta: it has format %d, this Polder knows %d: run a newer Polder",
			dir, m.Version, metaVersion)
	}
	return m, nil
}

// FileName is the name that an id has in the file system. A colon, as in a digest, would be read as a separator by
// overlayfs and as a protocol by QEMU.
func FileName(id string) string { return strings.ReplaceAll(id, ":", "%3A") }

func idOf(name string) string { return strings.ReplaceAll(name, "%3A", ":") }

// checkID keeps ids to what is safe as a file name and as a mount option.
func checkID(id string) error {
	ok := id != "" && len(id) <= 200 && id[0] != '.' && id[0] != '-'
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-:@+", c) >= 0)
	}
	if !ok {
		return api.Errorf(api.Invalid, "storage id %q: want 1 to 200 letters, digits or ._-:@+, the first not . or -", id)
	}
	return nil
}

// Explain gives errors of a full file system their kind and says what to do; others pass.
func (p *Pool) Explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return api.Errorf(api.Exhausted, "pool %q is full: delete VEs or images, or enlarge the file system of %s: %w",
			p.name, p.path, err)
	case errors.Is(err, syscall.EROFS):
		return api.Errorf(api.Unavailable, "pool %q: the file system of %s is read-only: look in the kernel's log for the reason: %w",
			p.name, p.path, err)
	}
	return err
}

// Sync makes what was done to a file or in a directory durable.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// syncFS makes all of path's file system durable.
func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", path, err)
	}
	return nil
}
