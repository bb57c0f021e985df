package pooldir

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
	"polder/internal/storage"
)

// halfDisk is a disk that is on its way.
const halfDisk = ".recv.disk"

func sentDisk(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf(".send.%d", n)) }

// sendDisk writes a round of a disk. Where the file system can share extents, the round is a copy of that moment, and what differs from the last one, or
// from the base, shows by the extents. Elsewhere the file is read as it is, and blocks are known by their digests.
func (p *Pool) sendDisk(ctx context.Context, dir, base string, v storage.Volume, n int, w io.Writer) error {
	out := newBlockWriter(ctx, w)
	if v.Format != "raw" {
		return p.sendBlocks(out, dir, v, n)
	}
	path := sentDisk(dir, n)
	now, err := frozenCopy(v.Path, path)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return p.sendBlocks(out, dir, v, n)
	} else if err != nil {
		return err
	}
	defer now.Close()
	before, child := base, base != ""
	if n > 0 {
		before, child = sentDisk(dir, n-1), false
		if n > 1 { // it was needed as long as round n-1 could be asked for
			if err := os.Remove(sentDisk(dir, n-2)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	var old []piece
	if before != "" {
		if old, err = piecesOf(before); errors.Is(err, fs.ErrNotExist) {
			return api.Errorf(api.Precondition, "round %d is not known here any more: begin with round 0", n-1)
		} else if err != nil {
			return err
		}
	}
	return p.sendChanged(out, dir, n, now, old, child)
}

// tried is what tries of a round have sent of a disk: the other end has it as it was then, or as it was before.
type tried struct {
	round int
	spans []span
}

// again gives what earlier tries of round n sent, and adds to it. Round 0 finds nothing at the other end.
func (t *transfers) again(dir string, n int, spans ...[]span) []span {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tried == nil {
		t.tried = map[string]tried{}
	}
	var before []span
	if last, ok := t.tried[dir]; ok && last.round == n && n > 0 {
		before = last.spans
	}
	t.tried[dir] = tried{round: n, spans: slices.Concat(append(spans, before)...)}
	return before
}

// DiskChanges is storage.Sender's.
func (p *Pool) DiskChanges(ctx context.Context, t storage.Transfer) (changes []storage.Span, known bool, err error) {
	v, err := p.Volume(ctx, t.ID)
	if err != nil || v.Kind != storage.Disk || v.Format != "raw" || t.Base == "" {
		return nil, false, err
	}
	base, err := p.baseOf(ctx, t)
	if err != nil {
		return nil, false, err
	}
	old, err := piecesOf(base)
	if err == nil {
		var now []piece
		if now, err = piecesOf(v.Path); err == nil {
			changes, known = unshared(old, now)
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return nil, false, nil
	}
	return changes, known, err
}

// unshared is where a file of the pieces now differs from one of the pieces old. Files that share nothing are copies of each
// other, which have to be read.
func unshared(old, now []piece) (all []storage.Span, known bool) {
	size, content := int64(0), int64(0)
	for _, list := range [][]piece{old, now} {
		content = 0
		for _, p := range list {
			size, content = max(size, p.end), content+p.end-p.start
		}
	}
	data, zeros := changed(old, now, size)
	for _, s := range data {
		content -= s.end - s.start
	}
	for _, s := range append(data, zeros...) {
		all = append(all, storage.Span{Start: s.start, End: s.end})
	}
	slices.SortFunc(all, func(a, b storage.Span) int { return cmp.Compare(a.Start, b.Start) })
	return all, content > 0
}

func piecesOf(path string) ([]piece, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return written(f)
}

func (p *Pool) sendChanged(out *blockWriter, dir string, n int, now *os.File, old []piece, child bool) error {
	pieces, err := written(now)
	if err != nil {
		return err
	}
	size, err := now.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := out.head(diskHead{Format: "raw", Size: size, Child: child}); err != nil {
		return err
	}
	data, zeros := changed(old, pieces, size)
	for _, s := range zeros {
		if err := out.zeros(s); err != nil {
			return err
		}
	}
	for _, s := range append(data, p.transfers.again(dir, n, data, zeros)...) {
		if err := out.data(now, span{s.start, min(s.end, size)}); err != nil {
			return err
		}
	}
	return out.end()
}

// frozenCopy makes a new file at path that shares all extents of a disk.
func frozenCopy(disk, path string) (*os.File, error) {
	src, err := os.Open(disk)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a round that was cut off
		return nil, err
	}
	dst, err := createDisk(path, !isNoCOW(src))
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		dst.Close()
		return nil, errors.Join(fmt.Errorf("reflink %s: %w", disk, err), os.Remove(path))
	}
	return dst, nil
}

// createDisk makes a new file for a disk, on btrfs one that is overwritten in place unless it is to be like one that is not.
func createDisk(path string, cow bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if !cow {
		if err := setNoCOW(path); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// blockRounds is what was sent of a file.
type blockRounds struct {
	round       int
	acked, sent []BlockSum   // as of the round before, and of this one
	doubt       map[int]bool // blocks that a try of this round sent, which may have come or not
}

// known is what the other end surely has.
func (b *blockRounds) known() []BlockSum {
	list := slices.Clone(b.acked)
	for i := range b.doubt {
		if i >= len(list) {
			list = append(list, make([]BlockSum, i+1-len(list))...)
		}
		list[i] = BlockSum{}
	}
	return list
}

// begin prepares for round n, and says whether that may come now.
func (b *blockRounds) begin(n int) bool {
	switch n {
	case 0:
		*b = blockRounds{doubt: map[int]bool{}}
	case b.round + 1:
		b.round, b.acked, b.doubt = n, b.sent, map[int]bool{}
	case b.round: // of a try that was cut off, nothing is known
		for i := range max(len(b.sent), len(b.acked)) {
			if i >= len(b.sent) || i >= len(b.acked) || b.sent[i] != b.acked[i] {
				b.doubt[i] = true
			}
		}
	default:
		return false
	}
	return true
}

func (p *Pool) blockRounds(dir string, n int) (*blockRounds, error) {
	p.transfers.mu.Lock()
	defer p.transfers.mu.Unlock()
	b := p.transfers.sums[dir]
	if b == nil && n == 0 {
		b = &blockRounds{}
		if p.transfers.sums == nil {
			p.transfers.sums = map[string]*blockRounds{}
		}
		p.transfers.sums[dir] = b
	}
	if b == nil || !b.begin(n) {
		return nil, api.Errorf(api.Precondition, "round %d is not known here any more: begin with round 0", n-1)
	}
	return b, nil
}

// sendBlocks writes the blocks of a file that are others than in the round before.
func (p *Pool) sendBlocks(out *blockWriter, dir string, v storage.Volume, n int) error {
	rounds, err := p.blockRounds(dir, n) // the caller's lock keeps others from it
	if err != nil {
		return err
	}
	f, err := os.Open(v.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := out.head(diskHead{Format: v.Format, Size: size}); err != nil {
		return err
	}
	// Until it is known how far this comes: all of it may be there, or nothing.
	known := rounds.known()
	rounds.sent = make([]BlockSum, (size+blockSize-1)/blockSize)
	sums, err := WriteBlocks(out.ctx, out.out, f, size, known)
	if err != nil {
		return err
	}
	rounds.sent = sums
	return out.out.Flush()
}

// receiveDisk reads a round of a disk.
func (p *Pool) receiveDisk(ctx context.Context, dir, base string, t storage.Transfer, n int, r io.Reader) error {
	in := bufio.NewReaderSize(r, 256<<10)
	var head diskHead
	if err := readLine(in, &head); err != nil {
		return err
	}
	if head.Format != "raw" && head.Format != "qcow2" || head.Child && (base == "" || n > 0) || head.Format == "raw" && head.Size != int64(t.Size) {
		return api.Errorf(api.Invalid, "round %d is a disk %+v, for a volume of %d bytes with the base %q", n, head, t.Size, t.Base)
	}
	path := filepath.Join(dir, halfDisk)
	if n == 0 {
		if err := p.beginDisk(path, base, head); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := readBlocks(ctx, in, f, head); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, ".recv.format"), []byte(head.Format), 0o600); err != nil {
		return err
	}
	return f.Sync()
}

func (p *Pool) beginDisk(path, base string, head diskHead) error {
	if head.Child && CanReflink(filepath.Dir(path)) {
		return reflink(base, path, head.Size)
	}
	f, err := createDisk(path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	if !head.Child {
		return nil
	}
	src, err := os.Open(base)
	if err != nil {
		return err
	}
	defer src.Close()
	return copyData(f, src)
}

// copyData copies a file but for its holes.
func copyData(dst, src *os.File) error {
	for pos := int64(0); ; {
		from, err := src.Seek(pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		} else if err != nil {
			return err
		}
		to, err := src.Seek(from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := dst.Seek(from, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(dst, io.NewSectionReader(src, from, to-from)); err != nil {
			return err
		}
		pos = to
	}
}

// finishDisk makes the volume of what came.
func (p *Pool) finishDisk(ctx context.Context, dir string, t storage.Transfer) error {
	path := filepath.Join(dir, halfDisk)
	format, err := os.ReadFile(filepath.Join(dir, ".recv.format"))
	if err != nil {
		return err
	}
	payload := RawName
	if string(format) == "qcow2" {
		payload = QCOW2Name
		base, err := p.baseOf(ctx, t)
		if err != nil {
			return err
		}
		if base == "" {
			return api.Errorf(api.Precondition, "the disk is a qcow2 image on top of a base that is not here: fetch that first")
		}
		// Its base is at another path than at the sender.
		if _, err := command.Run(ctx, nil, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", base, path); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(filepath.Join(dir, ".recv.format")); err != nil {
		return err
	}
	return p.publishDisk(f, dir, payload)
}

// publishDisk makes a complete disk the payload of dir, durably.
func (p *Pool) publishDisk(f *os.File, dir, payload string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, payload)); err != nil {
		return err
	}
	return SyncUp(dir)
}
