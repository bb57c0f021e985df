package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

// packTree writes a tree as a tar archive: always the same bytes for the same tree. Names are sorted, times are whole seconds, and
// where latest is set at most that. Sockets are left out.
func packTree(ctx context.Context, tree string, w io.Writer, o packing) error {
	p := &packer{packing: o, ctx: ctx, tree: tree, w: tar.NewWriter(w), links: map[inode]string{}}
	if err := filepath.WalkDir(tree, p.visit); err != nil {
		return fmt.Errorf("pack %s: %w", tree, err)
	}
	return p.w.Close()
}

// packing is how a tree is packed; the zero value takes it as it is.
type packing struct {
	latest   time.Time
	clean    *cleaner
	progress func(bytes int64) // of files, so far
}

type inode struct{ dev, ino uint64 }

type packer struct {
	packing
	ctx   context.Context
	tree  string
	w     *tar.Writer
	links map[inode]string // first name of what has several
	bytes int64
}

func (p *packer) visit(path string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if err := p.ctx.Err(); err != nil {
		return api.Errorf(api.Cancelled, "%w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	name := strings.TrimPrefix(path, p.tree)
	if p.clean.leaves(name) {
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	if s, ok := p.clean.of(name); ok {
		return p.substitute("."+name, &st, s)
	}
	h, err := p.header(path, &st)
	if err != nil || h == nil {
		return err
	}
	if err := p.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return nil
	}
	if err := p.content(path, h.Size); err != nil {
		return err
	}
	if p.bytes += h.Size; p.progress != nil {
		p.progress(p.bytes)
	}
	return nil
}

// substitute writes what stands for a file.
func (p *packer) substitute(name string, st *unix.Stat_t, s substitute) error {
	h := &tar.Header{Name: name, ModTime: p.time(st), Format: tar.FormatPAX}
	if s.link != "" {
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, s.link, 0o777
	} else {
		h.Typeflag, h.Size, h.Mode = tar.TypeReg, int64(len(s.content)), s.mode
	}
	if err := p.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err := p.w.Write(s.content)
	return err
}

// time is a file's, as it goes into the archive.
func (p *packer) time(st *unix.Stat_t) time.Time {
	at := time.Unix(st.Mtim.Sec, 0)
	if !p.latest.IsZero() && at.After(p.latest) {
		return p.latest
	}
	return at
}

// header describes a file; nil: it is left out.
func (p *packer) header(path string, st *unix.Stat_t) (*tar.Header, error) {
	name, err := filepath.Rel(p.tree, path)
	if err != nil {
		return nil, err
	}
	if name != "." {
		name = "./" + name
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: p.time(st), Format: tar.FormatPAX}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFREG:
		id := inode{st.Dev, st.Ino}
		if first, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return h, nil
		}
		if st.Nlink > 1 {
			p.links[id] = name
		}
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(path); err != nil {
			return nil, err
		}
		return h, nil
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return h, nil
	default: // sockets, and devices: /dev is made by who runs the system
		return nil, nil
	}
	h.PAXRecords, err = attributes(path)
	return h, err
}

func (p *packer) content(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(p.w, f, size); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// attributes are the extended attributes that are kept, as PAX records; nil when there are none.
func attributes(path string) (map[string]string, error) {
	buffer := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buffer)
	if err == unix.ENOTSUP {
		return nil, nil
	}
	if err == unix.ERANGE {
		buffer = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Llistxattr(path, buffer)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "list attributes", Path: path, Err: err}
	}
	var records map[string]string
	names := strings.Split(string(bytes.TrimRight(buffer[:n], "\x00")), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if !keptAttribute(name) {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, &fs.PathError{Op: "read attribute " + name, Path: path, Err: err}
		}
		if records == nil {
			records = map[string]string{}
		}
		records[paxAttribute+name] = string(value[:n])
	}
	return records, nil
}

// treeSize adds up a tree's files, each once.
func treeSize(tree string) (int64, error) {
	var total int64
	seen := map[inode]bool{}
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		id := inode{st.Dev, st.Ino}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT == unix.S_IFREG {
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		// Small files take a block each.
		total += (st.Size + 4095) / 4096 * 4096
		return nil
	})
	return total, err
}
