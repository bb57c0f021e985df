package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"polder/api"
	"polder/internal/command"
)

// compression of an archive.
type compression string

const (
	plain compression = ""
	gz    compression = "gzip"
	xz    compression = "xz"
	zst   compression = "zstd"
)

// sniffSize is how much of a file's beginning tells what it is.
const sniffSize = 1024

// sniff finds out what a file is from its first bytes. A compressed one is taken for a tar archive. An OCI layout is a tar archive too:
// see findLayout.
func sniff(head []byte) (api.ImageFormat, compression, error) {
	has := func(at int, magic string) bool {
		return len(head) >= at+len(magic) && string(head[at:at+len(magic)]) == magic
	}
	switch {
	case has(0, "\x1f\x8b"):
		return api.FormatTar, gz, nil
	case has(0, "\xfd7zXZ\x00"):
		return api.FormatTar, xz, nil
	case has(0, "\x28\xb5\x2f\xfd"), len(head) >= 4 && binary.LittleEndian.Uint32(head)&^0xf == 0x184d2a50:
		return api.FormatTar, zst, nil
	case has(0, "hsqs"):
		return api.FormatSquashFS, plain, nil
	case has(0, "QFI\xfb"):
		return api.FormatQcow2, plain, nil
	case has(257, "ustar"), isOldTar(head):
		return api.FormatTar, plain, nil
	case has(512, "EFI PART"), has(510, "\x55\xaa"):
		return api.FormatRaw, plain, nil
	}
	for _, other := range []struct{ magic, name string }{
		{"BZh", "bzip2"},
		{"KDMV", "a VMDK disk"},
		{"# Disk Descriptor", "a VMDK disk"},
		{"vhdxfile", "a VHDX disk"},
		{"conectix", "a VHD disk"},
		{"PK\x03\x04", "a zip archive"},
		{"7z\xbc\xaf", "a 7z archive"},
		{"\x7fELF", "a program"},
		{"!<arch>", "a package"},
	} {
		if has(0, other.magic) {
			return "", plain, api.Errorf(api.Unsupported, "it is %s: %s", other.name, wantedFormats)
		}
	}
	if len(head) == 0 {
		return "", plain, api.Errorf(api.Invalid, "it is empty")
	}
	return "", plain, api.Errorf(api.Invalid, "not a known format: %s", wantedFormats)
}

const wantedFormats = "want a root tar (plain, gzip, xz, zstd), a squashfs, a qcow2 or raw disk, or an OCI image layout in a tar"

// isOldTar recognizes a tar header from before POSIX by its checksum.
func isOldTar(head []byte) bool {
	if len(head) < 512 || bytes.Equal(head[:512], make([]byte, 512)) {
		return false
	}
	_, err := tar.NewReader(bytes.NewReader(head[:512])).Next()
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF)
}

// maxWindow is the most memory a decoder may need for what it refers back to: what the tools' strongest settings use.
const maxWindow = 128 << 20

// decompress gives an archive's content. Closing the result stops what works for it. Damage shows as an error of Read, at the latest at
// the end: all three formats have checksums.
func decompress(ctx context.Context, r io.Reader, c compression) (io.ReadCloser, error) {
	switch c {
	case plain:
		return io.NopCloser(r), nil
	case gz:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, damaged(c, err)
		}
		return &decoder{Reader: z, compression: c, close: func() { _ = z.Close() }}, nil
	case zst:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, damaged(c, err)
		}
		return &decoder{Reader: z, compression: c, close: z.Close}, nil
	case xz:
		return decompressXZ(ctx, r), nil
	}
	return nil, api.Errorf(api.Internal, "compression %q", c)
}

// decompressXZ runs xz: several times as fast as what there is in Go.
func decompressXZ(ctx context.Context, r io.Reader) io.ReadCloser {
	ctx, stop := context.WithCancel(ctx)
	out, in := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, err := command.Command{
			Name: "xz", Args: []string{"--decompress", "--stdout", "--threads=1", "--memlimit-decompress=256MiB"}, Stdin: r, Stdout: in,
		}.Run(ctx)
		in.CloseWithError(err)
	}()
	return &decoder{Reader: out, compression: xz, close: func() {
		stop()
		out.CloseWithError(context.Canceled)
		<-ended
	}}
}

type decoder struct {
	io.Reader
	compression compression
	close       func()
}

func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(d.compression, err)
	}
	return n, err
}

func (d *decoder) Close() error {
	d.close()
	return nil
}

func damaged(c compression, err error) error {
	var tool *command.Error
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.As(err, &tool) && strings.Contains(tool.Stderr, "Unexpected end"):
		return api.Errorf(api.Invalid, "the %s data is truncated", c)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return api.Errorf(api.Unsupported, "the %s data needs more than %s of memory: compress it with less", c, api.Bytes(maxWindow))
	case tool != nil:
		return api.Errorf(api.Invalid, "the %s data is damaged: %s", c, tool.Stderr)
	case api.KindOf(err) != api.Internal:
		return err
	}
	return api.Errorf(api.Invalid, "the %s data is damaged: %w", c, err)
}

// maxRatio is far beyond what real systems compress to (3 to 10), and is not looked at before a decoder has given ratioFree
// bytes.
const (
	maxRatio  = 200
	ratioFree = 256 << 20
)

// boundedReader guards against files that unpack to something huge.
type boundedReader struct {
	r     io.Reader
	in    *countingReader // the compressed side
	limit int64
	out   int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.out += int64(n)
	switch {
	case b.out > b.limit:
		return 0, api.Errorf(api.Exhausted, "unpacked it is larger than the %s there is room for", api.Bytes(b.limit))
	case b.out > ratioFree && b.in.n > 0 && b.out/b.in.n > maxRatio:
		return 0, api.Errorf(api.Invalid, "unpacked it is more than %d times as large: this looks like a decompression bomb (if it is not, unpack it before the import)", maxRatio)
	}
	return n, err
}

type countingReader struct {
	r io.Reader
	n int64
	// seen, when set, is told how much was read so far
	seen func(n int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.seen != nil {
		c.seen(c.n)
	}
	return n, err
}

// sniffFile looks at a file.
func sniffFile(path string) (api.ImageFormat, compression, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", plain, err
	}
	defer f.Close()
	head, err := bufio.NewReaderSize(f, sniffSize).Peek(sniffSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", plain, err
	}
	return sniff(head)
}
