package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

// unpackLimits bound what an archive from outside may make.
type unpackLimits struct {
	Bytes   int64 // of all files together, by their nominal size
	Entries int
}

// maxEntries is more than any system has, and few enough not to fill a file system's tables.
const maxEntries = 4_000_000

// maxID is the last user and group id that a virtual environment has.
const maxID = 65535

// unpacked says what was made.
type unpacked struct {
	Bytes   int64
	Entries int
}

// unpacker writes archives into a tree. Names are resolved inside the tree by the kernel (openat2): whatever symbolic links an
// archive makes first, nothing is written outside.
type unpacker struct {
	root   int // directory handle
	layer  bool
	limits unpackLimits
	done   unpacked
	dirs   map[string]*tar.Header // metadata that is set at the end, when nothing is made in them any more
	// made is what the layer being applied made, with the directories above: its own whiteouts do not hide it.
	made map[string]bool

	parentName string // of the open parent
	parent     int    // -1: none
	buffer     []byte
}

// newUnpacker opens the tree at dir, which is an empty directory. With layer the archives are layers of an OCI image: whiteouts are honoured, device
// nodes skipped, absolute links resolved inside the tree as a container would.
func newUnpacker(dir string, layer bool, limits unpackLimits) (*unpacker, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return &unpacker{root: root, layer: layer, limits: limits, dirs: map[string]*tar.Header{}, parent: -1, buffer: make([]byte, 256<<10)}, nil
}

func (u *unpacker) close() {
	u.forgetParent()
	unix.Close(u.root)
}

// unpackTar unpacks one root archive into the empty directory dir.
func unpackTar(ctx context.Context, r io.Reader, dir string, limits unpackLimits) (unpacked, error) {
	u, err := newUnpacker(dir, false, limits)
	if err != nil {
		return unpacked{}, err
	}
	defer u.close()
	if err := u.archive(ctx, r); err != nil {
		return unpacked{}, err
	}
	return u.done, u.finish()
}

// archive unpacks one archive to its end, which must be there.
func (u *unpacker) archive(ctx context.Context, r io.Reader) error {
	u.made = map[string]bool{}
	end := &endReader{r: r}
	t := tar.NewReader(end)
	for {
		if err := ctx.Err(); err != nil {
			return api.Errorf(api.Cancelled, "unpack: %w", err)
		}
		h, err := t.Next()
		if err == io.EOF {
			return end.check(u.layer)
		}
		if err != nil {
			return archiveError(err)
		}
		if err := u.member(h, t); err != nil {
			return memberError(h.Name, err)
		}
	}
}

// memberError adds the member's name, and the kind that trouble with the file system has.
func memberError(name string, err error) error {
	if len(name) > 256 {
		name = name[:256] + "…"
	}
	kind := api.KindOf(err)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind = api.Exhausted
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EILSEQ):
		kind = api.Invalid
	}
	return api.Errorf(kind, "archive member %q: %w", name, err)
}

// archiveError is for an archive that can't be read on.
func archiveError(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return api.Errorf(api.Invalid, "the archive is truncated: %w", err)
	case errors.Is(err, tar.ErrHeader):
		return api.Errorf(api.Invalid, "the archive is damaged, or not a tar archive: %w", err)
	}
	var kind *api.Error
	if errors.As(err, &kind) {
		return err
	}
	return api.Errorf(api.Invalid, "read the archive: %w", err)
}

// endReader finds out whether an archive had its end: tar.Reader takes a file that just stops for a complete one.
type endReader struct {
	r   io.Reader
	eof bool
}

func (e *endReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if n == 0 && err == io.EOF && len(p) > 0 {
		e.eof = true
	}
	return n, err
}

// check reads what follows the end: it may be padding only. A layer may lack its end: its digest says whether it is whole.
func (e *endReader) check(layer bool) error {
	if e.eof && !layer {
		return api.Errorf(api.Invalid, "the archive is truncated: it has no end mark")
	}
	buffer := make([]byte, 64<<10)
	for {
		n, err := e.r.Read(buffer)
		if len(bytes.TrimLeft(buffer[:n], "\x00")) > 0 {
			return api.Errorf(api.Invalid, "the archive is damaged: something follows its end")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return archiveError(err)
		}
	}
}

// cleanName gives a member's path from the root without "./": "" is the root itself.
func (u *unpacker) cleanName(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		if !u.layer {
			return "", api.Errorf(api.Invalid, "an absolute name leads out of the root")
		}
		name = strings.TrimLeft(name, "/")
	}
	if strings.ContainsRune(name, 0) || len(name) > 4095 {
		return "", api.Errorf(api.Invalid, "not a valid name")
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", api.Errorf(api.Invalid, "a name with .. leads out of the root")
	}
	if name = path.Clean(name); name == "." {
		return "", nil
	}
	return name, nil
}

func (u *unpacker) member(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	u.done.Entries++
	if u.done.Entries > u.limits.Entries {
		return api.Errorf(api.Exhausted, "the archive has more than %d members", u.limits.Entries)
	}
	name, err := u.cleanName(h.Name)
	if err != nil {
		return err
	}
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return api.Errorf(api.Unsupported, "it belongs to user %d and group %d: ids above %d cannot be kept", h.Uid, h.Gid, maxID)
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return api.Errorf(api.Invalid, "the root itself is not a directory")
		}
		u.dirs[""] = h
		return nil
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if u.layer && strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(dir, base)
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		if u.layer {
			return nil
		}
		return api.Errorf(api.Invalid, "a device node: leave out /dev when making the archive (tar --exclude='./dev/*')")
	}
	parent, err := u.openParent(dir)
	if err != nil {
		return err
	}
	if u.layer {
		for made := name; made != "." && !u.made[made]; made = path.Dir(made) {
			u.made[made] = true
		}
	}
	return u.make(parent, name, base, h, content)
}

// make makes one member in its parent directory, in the place of what has its name.
func (u *unpacker) make(parent int, name, base string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		u.dirs[name] = h
		var st unix.Stat_t
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		return u.create(parent, base, func() error { return unix.Mkdirat(parent, base, 0o700) })
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(parent, base, h, content)
	case tar.TypeLink:
		return u.link(parent, base, h)
	case tar.TypeSymlink:
		if !u.layer && climbsOut(name, h.Linkname) {
			return api.Errorf(api.Invalid, "a symbolic link to %q leads out of the root", h.Linkname)
		}
		err := u.create(parent, base, func() error { return unix.Symlinkat(h.Linkname, parent, base) })
		if err != nil {
			return err
		}
		return setMeta(parent, base, h)
	case tar.TypeFifo:
		if err := u.create(parent, base, func() error { return unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0) }); err != nil {
			return err
		}
		return setMeta(parent, base, h)
	}
	return api.Errorf(api.Unsupported, "a member of type %q", h.Typeflag)
}

// climbsOut says whether a relative link target has more .. than there are directories above the link. (An absolute target is
// meant from the system's own root.)
func climbsOut(name, target string) bool {
	if strings.HasPrefix(target, "/") {
		return false
	}
	depth := strings.Count(name, "/")
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// create calls f, which makes something that must not be there, and removes first what is.
func (u *unpacker) create(parent int, base string, f func() error) error {
	err := f()
	if errors.Is(err, unix.EEXIST) {
		if err := u.remove(parent, base); err != nil {
			return err
		}
		err = f()
	}
	return err
}

func (u *unpacker) file(parent int, base string, h *tar.Header, content io.Reader) error {
	u.done.Bytes += h.Size
	if h.Size < 0 || u.done.Bytes > u.limits.Bytes || u.done.Bytes < 0 {
		return api.Errorf(api.Exhausted, "the archive's files need more than the %s there is room for", api.Bytes(u.limits.Bytes))
	}
	fd := -1
	err := u.create(parent, base, func() (err error) {
		fd, err = unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if err := u.fill(f, h, content); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return setMeta(parent, base, h)
}

// fill copies a file's content. Long runs of zeros become holes.
func (u *unpacker) fill(f *os.File, h *tar.Header, content io.Reader) error {
	var size int64
	for {
		n, err := io.ReadFull(content, u.buffer)
		if n > 0 {
			if n == len(u.buffer) && allZero(u.buffer) {
				if _, err := f.Seek(int64(n), io.SeekCurrent); err != nil {
					return err
				}
			} else if _, err := f.Write(u.buffer[:n]); err != nil {
				return err
			}
			size += int64(n)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF && size == h.Size {
			break
		}
		if err != nil {
			return archiveError(err)
		}
	}
	if size != h.Size {
		return api.Errorf(api.Invalid, "the archive is truncated")
	}
	return f.Truncate(size)
}

func allZero(b []byte) bool {
	var zeros [4096]byte
	for len(b) >= len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

func (u *unpacker) link(parent int, base string, h *tar.Header) error {
	target, err := u.cleanName(h.Linkname)
	if err != nil || target == "" {
		return api.Errorf(api.Invalid, "a hard link to %q leads out of the root", h.Linkname)
	}
	dir, targetBase := path.Split(target)
	from, err := u.openDir(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return api.Errorf(api.Invalid, "a hard link to %q: %w", h.Linkname, err)
	}
	defer unix.Close(from)
	err = u.create(parent, base, func() error { return unix.Linkat(from, targetBase, parent, base, 0) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		return api.Errorf(api.Invalid, "a hard link to %q, which is no file of the archive", h.Linkname)
	}
	return err
}

// setMeta sets owner, mode, attributes and time of what is not a directory.
func setMeta(parent int, base string, h *tar.Header) error {
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the owner: %w", err)
	}
	if h.Typeflag != tar.TypeSymlink {
		// It was made a moment ago, and is no link.
		if err := unix.Fchmodat(parent, base, uint32(h.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("set the mode: %w", err)
		}
		if err := setAttributes(parent, base, h); err != nil {
			return err
		}
	}
	at := unix.NsecToTimespec(fileTime(h).UnixNano())
	if err := unix.UtimesNanoAt(parent, base, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

// fileTime keeps a time inside what UnixNano can say.
func fileTime(h *tar.Header) time.Time {
	if y := h.ModTime.Year(); y < 1970 || y > 2200 {
		return time.Unix(0, 0)
	}
	return h.ModTime
}

const paxAttribute = "SCHILY.xattr."

// keptAttribute says which extended attributes are part of a system. Others are of the machine the archive was made on (SELinux
// labels), or steer the kernel's overlay file system.
func keptAttribute(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.posix_acl_")
}

func setAttributes(parent int, base string, h *tar.Header) error {
	fd := -1
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxAttribute)
		if !ok || !keptAttribute(name) || h.Typeflag == tar.TypeFifo {
			continue
		}
		if fd < 0 {
			var err error
			if fd, err = unix.Openat(parent, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			defer unix.Close(fd)
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return fmt.Errorf("set the attribute %s: %w", name, err)
		}
	}
	return nil
}

// finish gives the directories their metadata, the deepest first.
func (u *unpacker) finish() error {
	u.forgetParent()
	names := make([]string, 0, len(u.dirs))
	for name := range u.dirs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Backward(names) {
		if err := u.finishDir(name, u.dirs[name]); err != nil {
			return memberError(name, err)
		}
	}
	return nil
}

func (u *unpacker) finishDir(name string, h *tar.Header) error {
	if name == "" {
		return setMeta(u.root, ".", h)
	}
	dir, base := path.Split(name)
	parent, err := u.openDir(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return nil // something else took the place of a directory above
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return setMeta(parent, base, h)
}
