package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage/pooldir"
)

// applier applies a subvolume's stream to a subvolume. The kernel resolves all names inside it and follows no symbolic link (openat2): whatever a
// stream says, nothing outside is touched.
type applier struct {
	root   *os.File // the subvolume
	parent *os.File // what the stream is the difference to; nil: it is all
	// ids by which the stream calls the two
	self, parentUUID []byte

	file     *os.File // open for writing; nil: none
	filePath string
	did      int // commands that changed something
}

// apply reads one stream, up to its end.
func (a *applier) apply(ctx context.Context, r io.Reader) error {
	defer a.closeFile()
	commands, err := newCommandReader(r)
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return err
		}
		cmd, err := commands.next()
		if err != nil {
			return err
		}
		if cmd.number == cmdEnd {
			return nil
		}
		if first {
			err = a.begin(cmd)
		} else {
			err = a.do(cmd)
			a.did++
		}
		if cmd.bad != nil {
			return cmd.bad
		}
		if err != nil {
			return fmt.Errorf("command %d of btrfs' stream, %q: %w", cmd.number, cmd.attrs[attrPath], err)
		}
	}
}

func (a *applier) begin(cmd *streamCommand) error {
	switch {
	case cmd.number == cmdSubvolume && a.parent == nil:
	case cmd.number == cmdSnapshot && a.parent != nil:
		a.parentUUID = bytes.Clone(cmd.bytes(attrCloneUUID))
	default:
		return api.Errorf(api.Invalid, "the stream begins with another command than was agreed")
	}
	a.self = bytes.Clone(cmd.bytes(attrUUID))
	return nil
}

func (a *applier) do(cmd *streamCommand) error {
	path := cmd.path()
	if cmd.bad != nil {
		return cmd.bad
	}
	switch cmd.number {
	case cmdWrite:
		data, offset := cmd.bytes(attrData), cmd.offset(attrOffset)
		if cmd.bad != nil {
			return cmd.bad
		}
		f, err := a.open(path)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(data, offset)
		return err
	case cmdClone:
		return a.clone(cmd, path)
	case cmdTruncate:
		size := cmd.offset(attrSize)
		if cmd.bad != nil {
			return cmd.bad
		}
		f, err := a.open(path)
		if err != nil {
			return err
		}
		return f.Truncate(size)
	}
	a.closeFile() // its name may be another's from here on
	return pooldir.Beneath(a.root, path, func(parent int, base string) error {
		if cmd.number == cmdRename || cmd.number == cmdLink {
			return a.twoNames(cmd, parent, base)
		}
		if ok, err := a.make(cmd, parent, base); ok {
			return err
		}
		return a.change(cmd, parent, base)
	})
}

// twoNames renames or links.
func (a *applier) twoNames(cmd *streamCommand, parent int, base string) error {
	if cmd.number == cmdRename { // from PATH to PATH_TO
		to := cmd.name(attrPathTo)
		if cmd.bad != nil {
			return cmd.bad
		}
		return pooldir.Beneath(a.root, to, func(toParent int, toBase string) error {
			return unix.Renameat(parent, base, toParent, toBase)
		})
	}
	from := cmd.name(attrPathLink) // PATH is the new name
	if cmd.bad != nil {
		return cmd.bad
	}
	return pooldir.Beneath(a.root, from, func(fromParent int, fromBase string) error {
		return unix.Linkat(fromParent, fromBase, parent, base, 0)
	})
}

// make makes or removes something; ok is false when the command is another.
func (a *applier) make(cmd *streamCommand, parent int, base string) (ok bool, err error) {
	switch cmd.number {
	case cmdMakeFile:
		fd, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err == nil {
			err = unix.Close(fd)
		}
		return true, err
	case cmdMakeDir:
		return true, unix.Mkdirat(parent, base, 0o700)
	case cmdMakeDevice:
		mode, device := cmd.number64(attrMode), cmd.number64(attrRdev)
		if cmd.bad != nil {
			return true, cmd.bad
		}
		return true, unix.Mknodat(parent, base, uint32(mode&unix.S_IFMT), int(device))
	case cmdMakeFIFO:
		return true, unix.Mknodat(parent, base, unix.S_IFIFO, 0)
	case cmdMakeSocket:
		return true, unix.Mknodat(parent, base, unix.S_IFSOCK, 0)
	case cmdSymlink:
		target := cmd.name(attrPathLink)
		if cmd.bad != nil {
			return true, cmd.bad
		}
		return true, unix.Symlinkat(target, parent, base)
	case cmdUnlink:
		return true, unix.Unlinkat(parent, base, 0)
	case cmdRemoveDir:
		return true, unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
	}
	return false, nil
}

// change changes what a file has besides content.
func (a *applier) change(cmd *streamCommand, parent int, base string) error {
	switch cmd.number {
	case cmdSetXattr:
		name, value := cmd.name(attrXattrName), cmd.bytes(attrXattrData)
		if cmd.bad != nil {
			return cmd.bad
		}
		return unix.Lsetxattr(pooldir.ByHandle(parent, base), name, value, 0)
	case cmdRemoveXattr:
		name := cmd.name(attrXattrName)
		if cmd.bad != nil {
			return cmd.bad
		}
		return unix.Lremovexattr(pooldir.ByHandle(parent, base), name)
	case cmdChmod:
		mode := cmd.number64(attrMode)
		if cmd.bad != nil {
			return cmd.bad
		}
		fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(mode&0o7777)) // which a symbolic link refuses
	case cmdChown:
		uid, gid := cmd.number64(attrUID), cmd.number64(attrGID)
		if cmd.bad != nil {
			return cmd.bad
		}
		return unix.Fchownat(parent, base, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	case cmdUtimes:
		atime, mtime := cmd.time(attrAtime), cmd.time(attrMtime)
		if cmd.bad != nil {
			return cmd.bad
		}
		times := []unix.Timespec{unix.NsecToTimespec(atime.UnixNano()), unix.NsecToTimespec(mtime.UnixNano())}
		return unix.UtimesNanoAt(parent, base, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	return api.Errorf(api.Unsupported, "Polder does not know it")
}

// clone shares a piece of a file that is here already.
func (a *applier) clone(cmd *streamCommand, path string) error {
	from, to := cmd.offset(attrCloneOffset), cmd.offset(attrOffset)
	length := cmd.offset(attrCloneLength)
	source, uuid := cmd.name(attrClonePath), cmd.bytes(attrCloneUUID)
	if cmd.bad != nil {
		return cmd.bad
	}
	var root *os.File
	switch {
	case bytes.Equal(uuid, a.self):
		root = a.root
	case a.parent != nil && bytes.Equal(uuid, a.parentUUID):
		root = a.parent
	default:
		return api.Errorf(api.Invalid, "it shares an extent of a subvolume that the stream did not name")
	}
	src, err := pooldir.OpenBeneath(root, source, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := a.open(path)
	if err != nil {
		return err
	}
	err = unix.IoctlFileCloneRange(int(dst.Fd()), &unix.FileCloneRange{
		Src_fd: int64(src.Fd()), Src_offset: uint64(from), Src_length: uint64(length), Dest_offset: uint64(to),
	})
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	// One of the two is overwritten in place, the other is not.
	n, err := io.Copy(io.NewOffsetWriter(dst, to), io.NewSectionReader(src, from, length))
	if err == nil && n != length {
		err = api.Errorf(api.Invalid, "it shares %d bytes at %d of %q, which has less", length, from, source)
	}
	return err
}

// open opens a file for writing; the last one stays open, as most commands are about the same as the one before.
func (a *applier) open(path string) (*os.File, error) {
	if a.file != nil && a.filePath == path {
		return a.file, nil
	}
	a.closeFile()
	f, err := pooldir.OpenBeneath(a.root, path, unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	a.file, a.filePath = f, path
	return f, nil
}

func (a *applier) closeFile() {
	if a.file != nil {
		a.file.Close()
		a.file = nil
	}
}
