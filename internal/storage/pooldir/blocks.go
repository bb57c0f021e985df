package pooldir

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"polder/api"
)

// A disk in a stream is a line of JSON (diskHead), then frames:
//
//	'd' offset (8 bytes) length (4) content      what is written there
//	'z' offset (8) length (8)                    zeros
//	'e'                                          the end
//
// Numbers are big-endian. Applying a frame twice is the same as once.
type diskHead struct {
	Version int    `json:"v"`
	Format  string `json:"format"` // "raw", "qcow2"
	Size    int64  `json:"size"`   // of the file
	// Child: what is not in the frames of round 0 is as in the base.
	Child bool `json:"child,omitempty"`
}

const (
	frameData = 'd'
	frameZero = 'z'
	frameEnd  = 'e'

	blockSize = 64 << 10 // longest content of a frame
)

// span is a piece of a file, end excluded.
type span struct{ start, end int64 }

// blockWriter writes a disk's frames.
type blockWriter struct {
	ctx  context.Context
	out  *bufio.Writer
	buf  []byte
	zero span // not written yet
}

func newBlockWriter(ctx context.Context, w io.Writer) *blockWriter {
	return &blockWriter{ctx: ctx, out: bufio.NewWriterSize(w, 256<<10), buf: make([]byte, blockSize)}
}

func (b *blockWriter) head(h diskHead) error {
	h.Version = streamVersion
	return writeLine(b.out, h)
}

// data writes what f has in a span, block by block, holes as zeros without reading them.
func (b *blockWriter) data(f *os.File, s span) error {
	for pos := s.start; pos < s.end; {
		from, err := f.Seek(pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return b.zeros(span{pos, s.end})
		} else if err != nil {
			return err
		}
		if from = min(from, s.end); from > pos {
			if err := b.zeros(span{pos, from}); err != nil {
				return err
			}
			pos = from
			continue
		}
		to, err := f.Seek(pos, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := b.blocks(f, span{pos, min(to, s.end)}); err != nil {
			return err
		}
		pos = min(to, s.end)
	}
	return nil
}

func (b *blockWriter) blocks(f *os.File, s span) error {
	for pos := s.start; pos < s.end; {
		n := min(blockSize-pos%blockSize, s.end-pos)
		if _, err := f.ReadAt(b.buf[:n], pos); err != nil {
			return err
		}
		if err := b.block(pos, b.buf[:n]); err != nil {
			return err
		}
		pos += n
	}
	return nil
}

// block writes one block; one of zeros takes next to nothing.
func (b *blockWriter) block(pos int64, content []byte) error {
	if err := b.ctx.Err(); err != nil {
		return err
	}
	if AllZero(content) {
		return b.zeros(span{pos, pos + int64(len(content))})
	}
	if err := b.flushZeros(); err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint64([]byte{frameData}, uint64(pos))
	if _, err := b.out.Write(binary.BigEndian.AppendUint32(frame, uint32(len(content)))); err != nil {
		return err
	}
	_, err := b.out.Write(content)
	return err
}

func (b *blockWriter) zeros(s span) error {
	if b.zero.end == s.start && b.zero.end > b.zero.start {
		b.zero.end = s.end
		return nil
	}
	err := b.flushZeros()
	b.zero = s
	return err
}

func (b *blockWriter) flushZeros() error {
	if b.zero.end <= b.zero.start {
		return nil
	}
	frame := binary.BigEndian.AppendUint64([]byte{frameZero}, uint64(b.zero.start))
	_, err := b.out.Write(binary.BigEndian.AppendUint64(frame, uint64(b.zero.end-b.zero.start)))
	b.zero = span{}
	return err
}

func (b *blockWriter) finish() error {
	if err := b.flushZeros(); err != nil {
		return err
	}
	return b.out.WriteByte(frameEnd)
}

func (b *blockWriter) end() error {
	if err := b.finish(); err != nil {
		return err
	}
	return b.out.Flush()
}

// readBlocks writes the frames of a disk into f, up to their end.
func readBlocks(ctx context.Context, in *bufio.Reader, f *os.File, head diskHead) error {
	if head.Version != streamVersion || head.Size < 0 || head.Size > 1<<56 {
		return api.Errorf(api.Invalid, "a disk of version %d and %d bytes in the stream", head.Version, head.Size)
	}
	if err := f.Truncate(head.Size); err != nil {
		return err
	}
	buf := make([]byte, blockSize)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		kind, err := in.ReadByte()
		if err != nil {
			return CutOff(err)
		}
		if kind == frameEnd {
			return nil
		}
		if err := readFrame(in, f, kind, head.Size, buf); err != nil {
			return err
		}
	}
}

func readFrame(in *bufio.Reader, f *os.File, kind byte, size int64, buf []byte) error {
	var numbers [16]byte
	length := 12
	if kind == frameZero {
		length = 16
	}
	if _, err := io.ReadFull(in, numbers[:length]); err != nil {
		return CutOff(err)
	}
	pos := int64(binary.BigEndian.Uint64(numbers[:]))
	n := int64(binary.BigEndian.Uint32(numbers[8:]))
	if kind == frameZero {
		n = int64(binary.BigEndian.Uint64(numbers[8:]))
	}
	if pos < 0 || n < 0 || pos > size || n > size-pos || kind == frameData && n > int64(len(buf)) || kind != frameData && kind != frameZero {
		return api.Errorf(api.Invalid, "a frame %q of %d bytes at %d in a disk of %d", kind, n, pos, size)
	}
	if kind == frameZero {
		return zeroRange(f, pos, n)
	}
	if _, err := io.ReadFull(in, buf[:n]); err != nil {
		return CutOff(err)
	}
	_, err := f.WriteAt(buf[:n], pos)
	return err
}

// zeroRange makes a piece of a file read as zeros, and where possible take no space.
func zeroRange(f *os.File, pos, n int64) error {
	if n == 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, pos, n)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	zeros := make([]byte, blockSize)
	for n > 0 {
		m, err := f.WriteAt(zeros[:min(n, blockSize)], pos)
		if err != nil {
			return err
		}
		pos, n = pos+int64(m), n-int64(m)
	}
	return nil
}

// AllZero says whether there is nothing but zeros in b.
func AllZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
