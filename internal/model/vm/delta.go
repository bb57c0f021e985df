package vm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// A raw disk goes to the other host as what differs from the file that is there already: most often a child of the same
// image. The receiver tells what it has, block by block, the sender answers with the blocks that are otherwise at its end. Both
// go through the disk once, in step, so that nothing of it has to be remembered.
//
//	sender:   one byte: compareDisk, or knownChanges: then the receiver tells nothing
//	receiver: number (4 bytes), hash (16) of each block that is not all zero, ascending; then endOfBlocks
//	sender:   number (4), length (4), content of each block that differs, length 0: all zero; then endOfBlocks
//	receiver: one byte, once all is on its disk

const (
	deltaBlock  = 64 << 10 // bytes
	endOfBlocks = 1<<32 - 1

	compareDisk  = 1
	knownChanges = 2
)

// blockHash is enough to tell blocks apart; who makes two that are alike to it fools its own disk only.
type blockHash [16]byte

func hashBlock(b []byte) blockHash {
	sum := sha256.Sum256(b)
	return blockHash(sum[:16])
}

// disk reads a disk file block by block, and skips its holes.
type disk struct {
	f    *os.File
	size int64
	buf  []byte
	data int64 // where data goes on, from the last place asked for
	hole int64 // where that ends
}

func newDisk(f *os.File) (*disk, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > deltaBlock*(endOfBlocks-1) {
		return nil, api.Errorf(api.Unsupported, "a disk of %s can't be moved while it is in use", api.Bytes(info.Size()))
	}
	return &disk{f: f, size: info.Size(), buf: make([]byte, deltaBlock)}, nil
}

// next is the first block from number n on that may hold data; endOfBlocks: none.
func (d *disk) next(n int64) (int64, error) {
	at := n * deltaBlock
	if at >= d.hole {
		data, err := unix.Seek(int(d.f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return endOfBlocks, nil
		}
		if err != nil {
			return 0, fmt.Errorf("seek in %s: %w", d.f.Name(), err)
		}
		if d.hole, err = unix.Seek(int(d.f.Fd()), data, unix.SEEK_HOLE); err != nil {
			return 0, fmt.Errorf("seek in %s: %w", d.f.Name(), err)
		}
		d.data = data
	}
	return max(at, d.data) / deltaBlock, nil
}

// read reads block n; the last one may be short. zero says that it is all zero. The content is valid until the next call.
func (d *disk) read(n int64) (content []byte, zero bool, err error) {
	content = d.buf[:min(deltaBlock, d.size-n*deltaBlock)]
	if _, err := d.f.ReadAt(content, n*deltaBlock); err != nil {
		return nil, false, fmt.Errorf("read %s: %w", d.f.Name(), err)
	}
	return content, allZero(content), nil
}

func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}

// sendDelta sends what the file has otherwise than the other end, until that has it on its disk. The file may be written to meanwhile: then the
// receiver gets the one or the other content.
func sendDelta(ctx context.Context, s io.ReadWriter, f *os.File) error {
	d, err := newDisk(f)
	if err != nil {
		return err
	}
	if _, err := s.Write([]byte{compareDisk}); err != nil {
		return err
	}
	in, out := bufio.NewReaderSize(s, 256<<10), bufio.NewWriterSize(s, 256<<10)
	theirs := blockList{r: in}
	if err := theirs.advance(); err != nil {
		return err
	}
	for n := int64(0); ; n++ {
		mine, err := d.next(n)
		if err != nil {
			return err
		}
		n = min(mine, theirs.n)
		if err := errors.Join(ctx.Err(), theirs.err); err != nil {
			return err
		}
		if n == endOfBlocks {
			break
		}
		if err := sendBlock(out, d, n, mine == n, &theirs); err != nil {
			return err
		}
	}
	return endBlocks(in, out)
}

// sendChanges sends all of the file that is in changes, which are in order, until the other end has it on its disk.
func sendChanges(ctx context.Context, s io.ReadWriter, f *os.File, changes []model.Span) error {
	d, err := newDisk(f)
	if err != nil {
		return err
	}
	if _, err := s.Write([]byte{knownChanges}); err != nil {
		return err
	}
	out := bufio.NewWriterSize(s, 256<<10)
	n := int64(0)
	for _, c := range changes {
		for n = max(n, c.Start/deltaBlock); n*deltaBlock < min(c.End, d.size); n++ {
			content, zero, err := d.read(n)
			if err := errors.Join(ctx.Err(), err); err != nil {
				return err
			}
			if zero {
				content = nil
			}
			if err := putBlock(out, n, content); err != nil {
				return err
			}
		}
	}
	return endBlocks(bufio.NewReader(s), out)
}

// endBlocks ends what is sent, and waits until the other end has it on its disk.
func endBlocks(in *bufio.Reader, out *bufio.Writer) error {
	if err := binary.Write(out, binary.BigEndian, uint32(endOfBlocks)); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if _, err := in.ReadByte(); err != nil {
		return fmt.Errorf("the other host has not written the disk: %w", err)
	}
	return nil
}

// sendBlock compares block n of both ends and sends it where they differ.
func sendBlock(out *bufio.Writer, d *disk, n int64, mine bool, theirs *blockList) error {
	content, zero := []byte(nil), true
	if mine {
		var err error
		if content, zero, err = d.read(n); err != nil {
			return err
		}
	}
	there := theirs.n == n
	hash := theirs.hash
	if there {
		if err := theirs.advance(); err != nil {
			return err
		}
	}
	switch {
	case zero && !there, !zero && there && hash == hashBlock(content):
		return nil
	case zero:
		content = nil
	}
	return putBlock(out, n, content)
}

// putBlock sends block n; one without content is all zero.
func putBlock(out *bufio.Writer, n int64, content []byte) error {
	var head [8]byte
	binary.BigEndian.PutUint32(head[:], uint32(n))
	binary.BigEndian.PutUint32(head[4:], uint32(len(content)))
	_, err := out.Write(head[:])
	if err == nil {
		_, err = out.Write(content)
	}
	return err
}

// blockList is what the receiver tells of its blocks: the next one.
type blockList struct {
	r    *bufio.Reader
	n    int64
	hash blockHash
	err  error
}

func (l *blockList) advance() error {
	last, first := l.n, l.hash == blockHash{} && l.n == 0
	var number [4]byte
	if _, err := io.ReadFull(l.r, number[:]); err != nil {
		return fmt.Errorf("what the other host has of the disk: %w", err)
	}
	if l.n = int64(binary.BigEndian.Uint32(number[:])); l.n == endOfBlocks {
		return nil
	}
	if l.n <= last && !first {
		return fmt.Errorf("what the other host has of the disk: block %d after %d", l.n, last)
	}
	_, err := io.ReadFull(l.r, l.hash[:])
	return err
}

// receiveDelta makes the file what the other end has, and syncs it.
func receiveDelta(ctx context.Context, s io.ReadWriter, f *os.File) error {
	d, err := newDisk(f)
	if err != nil {
		return err
	}
	var way [1]byte
	if _, err := io.ReadFull(s, way[:]); err != nil {
		return fmt.Errorf("the disk: %w", err)
	}
	told := make(chan error, 1)
	if way[0] == knownChanges {
		told <- nil
	} else {
		go func() { told <- tellBlocks(ctx, s, d) }()
	}
	if err := applyBlocks(s, f, d.size); err != nil {
		return err // the caller closes the stream, which ends the other one
	}
	if err := <-told; err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	_, err = s.Write([]byte{1})
	return err
}

// tellBlocks tells what the file has. Blocks are changed only behind it: the sender answers none before it has heard of it.
func tellBlocks(ctx context.Context, s io.Writer, d *disk) error {
	out := bufio.NewWriterSize(s, 64<<10)
	for n := int64(0); ; n++ {
		var err error
		if n, err = d.next(n); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if n == endOfBlocks {
			break
		}
		content, zero, err := d.read(n)
		if err != nil {
			return err
		}
		if zero {
			continue
		}
		hash := hashBlock(content)
		if _, err := out.Write(append(binary.BigEndian.AppendUint32(nil, uint32(n)), hash[:]...)); err != nil {
			return err
		}
	}
	if err := binary.Write(out, binary.BigEndian, uint32(endOfBlocks)); err != nil {
		return err
	}
	return out.Flush()
}

// applyBlocks writes what the sender has otherwise.
func applyBlocks(r io.Reader, f *os.File, size int64) error {
	in := bufio.NewReaderSize(r, 256<<10)
	buf := make([]byte, deltaBlock)
	for {
		var number [8]byte
		if _, err := io.ReadFull(in, number[:4]); err != nil {
			return fmt.Errorf("the disk: %w", err)
		}
		n := int64(binary.BigEndian.Uint32(number[:]))
		if n == endOfBlocks {
			return nil
		}
		if _, err := io.ReadFull(in, number[4:]); err != nil {
			return fmt.Errorf("the disk: %w", err)
		}
		length, most := int64(binary.BigEndian.Uint32(number[4:])), min(deltaBlock, size-n*deltaBlock)
		if most <= 0 || length != 0 && length != most {
			return fmt.Errorf("the disk: block %d of %d bytes does not belong to a disk of %d bytes: are both of one size?", n, length, size)
		}
		if length == 0 {
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, n*deltaBlock, most); err != nil {
				return fmt.Errorf("write %s: %w", f.Name(), err)
			}
			continue
		}
		if _, err := io.ReadFull(in, buf[:length]); err != nil {
			return fmt.Errorf("the disk: %w", err)
		}
		if _, err := f.WriteAt(buf[:length], n*deltaBlock); err != nil {
			return err
		}
	}
}
