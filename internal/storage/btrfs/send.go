package btrfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
	"polder/internal/storage/pooldir"
)

// A round of a tree in a stream is a section for each subvolume, parents first, and a last one that says End. A section is a line of JSON and, but for
// the last, the kernel's own stream of the subvolume (BTRFS_IOC_SEND).
type section struct {
	Version int    `json:"v"`
	ID      uint64 `json:"id,omitempty"`     // of the subvolume at the sender
	Parent  uint64 `json:"parent,omitempty"` // the subvolume that it is in; 0: it is the volume itself
	Path    []byte `json:"path,omitempty"`   // in that
	// ReadOnly is what it is to be in the end.
	ReadOnly bool `json:"read_only,omitempty"`
	// Full: the stream is all of it; else what differs from the round before, or in round 0 from the base.
	Full bool `json:"full,omitempty"`
	End  bool `json:"end,omitempty"`
}

const sectionVersion = 1

// TransferFormat is storage.Sender's.
func (p *Pool) TransferFormat() string { return "btrfs-1" }

func (d driver) SendBaseTree(ctx context.Context, path string, w io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return sendSubvolume(ctx, f, 0, w)
}

// SendTree takes a snapshot of the volume, and of each subvolume inside, and writes what differs from that of the last round, or from the base. The
// snapshots stay beside the volume, in no quota group, until the transfer ends.
func (d driver) SendTree(ctx context.Context, dir, base string, t storage.Transfer, n int, w io.Writer) error {
	if err := d.widen(dir); err != nil {
		return err
	}
	if err := d.dropRounds(dir, n, t.Last); err != nil {
		return err
	}
	sections, err := d.freezeAll(dir, n)
	if err != nil {
		return err
	}
	for i, s := range sections {
		before := sentPath(dir, n-1, s.ID)
		if n == 0 {
			before = ""
			if i == 0 {
				before = base
			}
		}
		parent, err := subvolumeAt(before)
		if errors.Is(err, fs.ErrNotExist) && i == 0 {
			return api.Errorf(api.Precondition, "round %d is not known here any more: begin with round 0", n-1)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.Full = parent == 0
		if err := sendSection(ctx, sentPath(dir, n, s.ID), s, parent, w); err != nil {
			return fmt.Errorf("subvolume %q: %w", s.Path, err)
		}
	}
	return writeSection(w, section{End: true})
}

func sentPath(dir string, n int, id uint64) string {
	return filepath.Join(dir, fmt.Sprintf(".send.%d.%d", n, id))
}

// dropRounds removes the snapshots of a try of this round, and of rounds that nobody can ask for again. The last round leaves that to EndTransfer.
func (d driver) dropRounds(dir string, n int, last bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		number, _, ok := strings.Cut(strings.TrimPrefix(e.Name(), ".send."), ".")
		round, err := strconv.Atoi(number)
		if !ok || err != nil || round == n-1 && n > 0 || round < n && last {
			continue
		}
		if err := d.destroyAt(filepath.Join(dir, e.Name()), 0); err != nil {
			return err
		}
	}
	return nil
}

// freezeAll takes the snapshots of a round.
func (d driver) freezeAll(dir string, n int) ([]section, error) {
	root, err := os.Open(filepath.Join(dir, pooldir.TreeName))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	id, err := subvolumeID(root)
	if err != nil {
		return nil, err
	}
	list, err := nestedIn(root, id)
	if err != nil {
		return nil, err
	}
	defer closeNested(list)
	sections := []section{{ID: id}}
	if err := freeze(root, sentPath(dir, n, id)); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	for _, s := range list {
		if err := freeze(s.open, sentPath(dir, n, s.id)); err != nil {
			return nil, fmt.Errorf("snapshot of the subvolume %q: %w", s.path, err)
		}
		sections = append(sections, section{ID: s.id, Parent: s.parent, Path: []byte(s.path), ReadOnly: s.readOnly})
	}
	return sections, nil
}

// subvolumeAt is the id of the subvolume at path; 0 for "".
func subvolumeAt(path string) (uint64, error) {
	if path == "" {
		return 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return subvolumeID(f)
}

func writeSection(w io.Writer, s section) error {
	s.Version = sectionVersion
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

func sendSection(ctx context.Context, path string, s section, parent uint64, w io.Writer) error {
	if err := writeSection(w, s); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return sendSubvolume(ctx, f, parent, w)
}

// sendArgs is struct btrfs_ioctl_send_args.
type sendArgs struct {
	fd           int64
	cloneSources uint64
	sources      unsafe.Pointer
	parent       uint64
	flags        uint64
	version      uint32
	_            [28]byte
}

// pipeSize is the most that a process may ask for without privileges on an untuned kernel.
const pipeSize = 1 << 20

// sendSubvolume writes the kernel's stream of a read-only subvolume: what differs from the subvolume parent, or, when that is 0, all.
func sendSubvolume(ctx context.Context, f *os.File, parent uint64, w io.Writer) error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	if err := unix.SetNonblock(fds[0], true); err != nil { // for ctx to end a read; the kernel wants to block at its end
		unix.Close(fds[0])
		unix.Close(fds[1])
		return err
	}
	out := os.NewFile(uintptr(fds[0]), "pipe")
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	done := make(chan error, 1)
	go func() {
		err := send(f, parent, fds[1])
		unix.Close(fds[1])
		done <- err
	}()
	_, copyErr := io.Copy(w, out)
	out.Close() // the kernel's next write fails
	sendErr := <-done
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case copyErr != nil:
		return copyErr
	case sendErr != nil:
		return fmt.Errorf("send subvolume: %w", sendErr)
	}
	return nil
}

// send blocks in the kernel until all is in the pipe. A signal would interrupt it when the pipe is full, and begin the stream anew in the middle: none may
// come, not even the runtime's own.
func send(f *os.File, parent uint64, pipe int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return err
	}
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()
	args := sendArgs{fd: int64(pipe), parent: parent}
	if parent != 0 {
		sources := &[1]uint64{parent} // files that were copied from the base by reference are not sent either
		args.cloneSources, args.sources = 1, unsafe.Pointer(sources)
	}
	return ioctl(f, iocSend, unsafe.Pointer(&args))
}

// widen lets a VE that is sent overwrite all that it has once: what it overwrites stays, in the snapshots.
func (d driver) widen(dir string) error {
	meta, err := pooldir.ReadMeta(dir)
	if err != nil || meta.QGroup == 0 || meta.Size == 0 || !d.quota.on {
		return err
	}
	if meta.Limit == 0 { // made by a release that did not write it down
		if meta.Limit, err = d.quota.limitOf(meta.QGroup); err != nil {
			return err
		}
		if err := pooldir.WriteMeta(dir, meta); err != nil {
			return err
		}
	}
	used, err := d.quota.used(meta.QGroup)
	if err != nil {
		return err
	}
	return d.quota.limit(meta.QGroup, meta.Limit+used)
}

// narrow undoes widen.
func (d driver) narrow(meta pooldir.Meta) error {
	if meta.QGroup == 0 || meta.Limit == 0 || !d.quota.on {
		return nil
	}
	err := d.quota.limit(meta.QGroup, meta.Limit)
	if noGroup(err) {
		return nil
	}
	return err
}
