package dir

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage/pooldir"
)

// A tree in a stream is a list of entries, each a length (4 bytes, big-endian) and JSON; a file's content follows its entry, as pooldir.WriteBlocks
// writes it. Applying an entry twice is the same as once. Paths are from the tree's root, which is ".".
type entry struct {
	Do     string  `json:"do"`
	Path   []byte  `json:"path,omitempty"`
	Mode   uint32  `json:"mode,omitempty"` // with the type, as in struct stat
	UID    uint32  `json:"uid,omitempty"`
	GID    uint32  `json:"gid,omitempty"`
	Device uint64  `json:"rdev,omitempty"`
	Second int64   `json:"sec,omitempty"` // of the last modification
	Nano   int64   `json:"nsec,omitempty"`
	Size   int64   `json:"size,omitempty"`
	Target []byte  `json:"target,omitempty"` // of a symbolic link; of a hard link, a path that is there already
	Xattrs []xattr `json:"xattrs,omitempty"`
}

type xattr struct{ Name, Value []byte }

// What an entry says.
const (
	doBegin  = "begin"  // the first; Size is the version
	doRemove = "remove" // path, with all below
	doMake   = "make"   // path anew, whatever was there; a directory that is there stays
	doPatch  = "patch"  // the file at path, in place
	doLink   = "link"   // path, a further name of Target
	doEnd    = "end"
)

const (
	treeVersion  = 1
	longestEntry = 1 << 20
)

func writeEntry(w *bufio.Writer, e entry) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(text) > longestEntry {
		return api.Errorf(api.Unsupported, "%q has too much in its extended attributes to be sent", e.Path)
	}
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(text)))); err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

func readEntry(r *bufio.Reader) (entry, error) {
	var e entry
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return e, pooldir.CutOff(err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > longestEntry {
		return e, api.Errorf(api.Invalid, "an entry of %d bytes in the stream", n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return e, pooldir.CutOff(err)
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return e, api.Errorf(api.Invalid, "the stream is not one of ours: %w", err)
	}
	return e, nil
}

// local are attributes that say something about this file system's inodes, with which overlays keep their numbers constant. Elsewhere they are wrong,
// or, where two file systems are copies of one, worse.
var local = []string{"trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.nlink", "trusted.overlay.upper", "trusted.overlay.uuid"}

// xattrsOf reads the attributes of an element of an open directory.
func xattrsOf(parent int, base string) ([]xattr, error) {
	path := pooldir.ByHandle(parent, base)
	names, err := xattrNames(path)
	if err != nil {
		return nil, err
	}
	var list []xattr
	for _, name := range names {
		if slices.Contains(local, name) {
			continue
		}
		value, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue
		} else if err != nil {
			return nil, err
		}
		list = append(list, xattr{Name: []byte(name), Value: value})
	}
	return list, nil
}

func xattrNames(path string) ([]string, error) {
	all, err := grow(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && len(all) == 0 {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	names := strings.Split(strings.TrimSuffix(string(all), "\x00"), "\x00")
	slices.Sort(names)
	return names, nil
}

// grow calls a function that fills a buffer, with one that is large enough.
func grow(fill func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := fill(buf)
		if errors.Is(err, unix.ERANGE) && len(buf) < 1<<20 {
			buf = make([]byte, 16*len(buf))
			continue
		} else if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
