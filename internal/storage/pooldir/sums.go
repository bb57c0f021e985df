package pooldir

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// BlockSum is the digest of 64 KiB of a file. The zero value is that of a block that is not known.
type BlockSum [sha256.Size]byte

// WriteBlocks writes the blocks of a file, size bytes long, that are not as old says, for ReadBlocks at the other end; blocks beyond old are zeros there.
// It returns how they are now. A file that turns out to be shorter has zeros from there on.
func WriteBlocks(ctx context.Context, out *bufio.Writer, f *os.File, size int64, old []BlockSum) ([]BlockSum, error) {
	b := &blockWriter{ctx: ctx, out: out, buf: make([]byte, min(blockSize, max(size, 1)))}
	sums := make([]BlockSum, (size+blockSize-1)/blockSize)
	var data, hole int64 // the piece with content that the next block is in, or before
	for i := range sums {
		pos := int64(i) * blockSize
		content := b.buf[:min(blockSize, size-pos)]
		if pos >= hole {
			data, hole = nextData(f, pos, size)
		}
		if pos+int64(len(content)) <= data {
			clear(content)
		} else if n, err := f.ReadAt(content, pos); err == io.EOF {
			clear(content[n:])
		} else if err != nil {
			return nil, err
		}
		sums[i] = sha256.Sum256(content)
		if i < len(old) && old[i] == sums[i] || i >= len(old) && AllZero(content) {
			continue
		}
		if err := b.block(pos, content); err != nil {
			return nil, err
		}
	}
	return sums, b.finish()
}

// nextData is the next piece of a file that is no hole.
func nextData(f *os.File, pos, size int64) (data, hole int64) {
	data, err := f.Seek(pos, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size
	} else if err != nil {
		return pos, size
	}
	if hole, err = f.Seek(data, unix.SEEK_HOLE); err != nil {
		return data, size
	}
	return data, hole
}

// ReadBlocks makes a file of size bytes of what it has and what WriteBlocks wrote.
func ReadBlocks(ctx context.Context, in *bufio.Reader, f *os.File, size int64) error {
	return readBlocks(ctx, in, f, diskHead{Version: streamVersion, Size: size})
}
