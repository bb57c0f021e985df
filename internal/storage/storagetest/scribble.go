package storagetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// scribbler changes a tree as programs do.
type scribbler struct {
	*rand.Rand
	root  string
	count int
}

// scribble does n random things. What can't be done at some place is not.
func (s *scribbler) scribble(n int) {
	for range n {
		s.count++
		s.once()
	}
}

// pick gives a random path of what is there, of a kind that is wanted; "": there is none.
func (s *scribbler) pick(want func(fs.FileMode) bool) string {
	var found []string
	_ = filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != s.root && want(d.Type()) && d.Name() != mappedName {
			found = append(found, path)
		}
		return nil
	})
	if len(found) == 0 {
		return ""
	}
	return found[s.IntN(len(found))]
}

// mappedName is of a file that must not be made shorter.
const mappedName = "mapped"

func regular(m fs.FileMode) bool   { return m.IsRegular() }
func directory(m fs.FileMode) bool { return m.IsDir() }
func anything(fs.FileMode) bool    { return true }
func linkable(m fs.FileMode) bool  { return !m.IsDir() }
func noSymlink(m fs.FileMode) bool { return m&fs.ModeSymlink == 0 }
func (s *scribbler) fresh() string {
	dir := s.pick(directory)
	if dir == "" || s.IntN(4) == 0 {
		dir = s.root
	}
	return filepath.Join(dir, fmt.Sprintf("n%d-\xff\xfe ä\n", s.count))
}

func (s *scribbler) content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(s.Uint32())
	}
	return b
}

func (s *scribbler) once() {
	switch path := s.pick(regular); s.IntN(22) {
	case 0, 1, 2:
		_ = os.WriteFile(s.fresh(), s.content(s.IntN(200000)), 0o640)
	case 3, 4: // in place
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteAt(s.content(1+s.IntN(5000)), int64(s.IntN(150000)))
			f.Close()
		}
	case 5:
		_ = os.Truncate(path, int64(s.IntN(100000)))
	case 6: // sparse
		if f, err := os.Create(s.fresh()); err == nil {
			_, _ = f.WriteAt(s.content(5000), 3<<20+int64(s.IntN(1<<20)))
			_ = f.Truncate(8 << 20)
			f.Close()
		}
	case 7: // a hole
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 65536)
			f.Close()
		}
	case 8:
		_ = os.Remove(s.pick(linkable))
	case 9:
		if s.IntN(3) == 0 {
			_ = os.RemoveAll(s.pick(directory))
		}
	case 10:
		_ = os.Mkdir(s.fresh(), 0o750)
	case 11:
		_ = os.Rename(s.pick(anything), s.fresh())
	case 12: // over another
		_ = os.Rename(s.pick(regular), s.pick(regular))
	case 13:
		_ = os.Symlink("../some where/"+s.fresh(), s.fresh())
	case 14, 15:
		_ = os.Link(s.pick(linkable), s.fresh())
	case 16:
		_ = unix.Mknod(s.fresh(), unix.S_IFCHR|0o660, int(unix.Mkdev(1, uint32(s.IntN(300)))))
	case 17:
		_ = unix.Mknod(s.fresh(), []uint32{unix.S_IFIFO, unix.S_IFSOCK}[s.IntN(2)]|0o600, 0)
	default:
		s.change(s.pick(noSymlink))
	}
}

// change changes what something has besides content.
func (s *scribbler) change(path string) {
	if path == "" {
		path = s.root
	}
	switch s.IntN(6) {
	case 0:
		_ = unix.Chmod(path, s.Uint32()%0o10000)
	case 1:
		_ = os.Lchown(path, s.IntN(65536), s.IntN(65536))
	case 2:
		_ = unix.Lsetxattr(path, "user.scribble", s.content(s.IntN(300)), 0)
	case 3: // security.capability: version 2, cap_net_raw
		_ = unix.Lsetxattr(path, "security.capability", []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
	case 4: // an ACL: user::rw- user:1000:r-- group::r-- mask::r-- other::---
		acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
		_ = unix.Lsetxattr(path, "system.posix_acl_access", acl, 0)
	case 5:
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 5}, {Sec: int64(s.IntN(1 << 30)), Nsec: int64(s.IntN(1e9))}}, unix.AT_SYMLINK_NOFOLLOW)
	}
}

// wantSame compares two trees in all that a program can see.
func wantSame(t *testing.T, got, want string) {
	t.Helper()
	g, w := describe(t, got), describe(t, want)
	bad := 0
	for path := range union(g, w) {
		if g[path] != w[path] {
			if bad++; bad <= 5 {
				t.Errorf("%q\n got %s\nwant %s", path, g[path], w[path])
			}
		}
	}
	if bad > 5 {
		t.Errorf("%d of %d paths differ", bad, len(w))
	}
}

func union(a, b map[string]string) map[string]bool {
	all := map[string]bool{}
	for path := range a {
		all[path] = true
	}
	for path := range b {
		all[path] = true
	}
	return all
}

// describe says all about each path of a tree.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	list := map[string]string{}
	names := map[uint64]string{} // first names of inodes
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, root)
		text := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch {
		case d.IsDir():
		case names[st.Ino] != "":
			text += " is " + names[st.Ino]
		default:
			names[st.Ino] = rel
			text += fmt.Sprintf(" %d names, %d bytes, device %x", st.Nlink, st.Size, st.Rdev)
		}
		if d.Type().IsRegular() {
			sum, err := digest(path)
			if err != nil {
				return err
			}
			text += " " + sum
		}
		if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		}
		list[rel] = text + attributes(path)
		return nil
	}))
	return list
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return fmt.Sprintf("%x", sum.Sum(nil)[:8]), err
}

func attributes(path string) string {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.EOPNOTSUPP) || n <= 0 {
		return ""
	}
	var text []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		if n, err = unix.Lgetxattr(path, name, value); err == nil {
			text = append(text, fmt.Sprintf(" %s=%x", name, value[:n]))
		}
	}
	slices.Sort(text)
	return strings.Join(text, "")
}
