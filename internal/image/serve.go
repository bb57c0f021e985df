package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"polder/api"
	"polder/internal/storage"
)

// What Serve writes: a line of JSON, then chunks, each with its length before it (4 bytes, big-endian); after the last one the length 0 and the
// SHA-256 of all chunks' content.

// served is the line of JSON.
type served struct {
	Version int    `json:"v"`
	Form    string `json:"form"`
	Size    int64  `json:"size"` // of the content, about: for the progress
}

const servedVersion = 1

// Forms of the content, besides the pools' own (storage.Sender.TransferFormat).
const (
	formTar = "tar"      // of a tree, for a pool of another driver
	formRaw = "raw.zstd" // of a disk, likewise
)

// Serve writes a base of this host's pool for another host's Ensure. form is the asking pool's own (storage.Sender.TransferFormat): what this pool can't
// write so goes as an archive. It blocks until all is written; a base that is not there is api.NotFound, before the first byte.
func (l *Library) Serve(ctx context.Context, digest string, kind storage.Kind, form string, w io.Writer) error {
	rec, err := l.Images.Get(ctx, digest)
	if err != nil {
		return err
	}
	who := "serve-" + rand.Text()
	if err := l.claim(digest, who, beingFetched); err != nil {
		return err
	}
	defer l.unclaim(digest, who)
	path, err := l.Pool.Base(ctx, baseID(digest), kind)
	if err != nil {
		return err
	}
	head := served{Version: servedVersion, Form: form, Size: int64(rec.Value.Image.SizeBytes)}
	if form != l.Pool.TransferFormat() {
		head.Form = formTar
		if kind == storage.Disk {
			head.Form = formRaw
		}
	}
	line, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return err
	}
	chunks := &chunkWriter{ctx: ctx, w: w, sum: sha256.New()}
	out := bufio.NewWriterSize(chunks, 256<<10)
	switch head.Form {
	case formTar:
		err = packTree(ctx, path, out, packing{})
	case formRaw:
		err = packDisk(path, out)
	default:
		err = l.Pool.SendBase(ctx, baseID(digest), kind, out)
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return err
	}
	return chunks.end()
}

// packDisk writes a disk so that its holes take next to nothing.
func packDisk(path string, w io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, f); err != nil {
		z.Close()
		return err
	}
	return z.Close()
}

// fetchFrom makes a base of what another host's Serve writes.
func (l *Library) fetchFrom(ctx context.Context, host string, rec Record, kind storage.Kind, progress Progress) error {
	digest := rec.Image.Digest
	body, err := l.Peers.Open(ctx, host, digest, kind, l.Pool.TransferFormat())
	if err != nil {
		return err
	}
	defer body.Close()
	stop := context.AfterFunc(ctx, func() { body.Close() })
	defer stop()
	in := bufio.NewReaderSize(body, 256<<10)
	head, err := readHead(in)
	if err != nil {
		return err
	}
	content := newChunkReader(in, func(n int64) { progress(n, head.Size, "bytes") })
	err = l.receive(ctx, head.Form, rec.Image, kind, content)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func readHead(r *bufio.Reader) (served, error) {
	var head served
	line, err := r.ReadSlice('\n')
	if err != nil {
		return head, api.Errorf(api.Unavailable, "the transfer was cut off: %w", err)
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return head, api.Errorf(api.Invalid, "the transfer begins with no description: %w", err)
	}
	if head.Version > servedVersion {
		return head, api.Errorf(api.Unsupported, "the transfer has format %d, this Polder knows %d: run a newer Polder", head.Version, servedVersion)
	}
	return head, nil
}

func (l *Library) receive(ctx context.Context, form string, image api.Image, kind storage.Kind, content *chunkReader) error {
	id := baseID(image.Digest)
	switch {
	case form == l.Pool.TransferFormat():
		return l.Pool.ReceiveBase(ctx, id, kind, content)
	case form == formTar && kind == storage.Tree:
		return l.Pool.AddBase(ctx, id, kind, func(ctx context.Context, path string) error {
			room, err := l.room(ctx)
			if err != nil {
				return err
			}
			if _, err := unpackTar(ctx, content, path, unpackLimits{Bytes: room, Entries: maxEntries}); err != nil {
				return err
			}
			if err := content.drain(); err != nil {
				return err
			}
			// The archive of a tree that was built is what its digest was made of.
			if got := "sha256:" + hex.EncodeToString(content.sum.Sum(nil)); image.Provenance.Method == "build" && got != image.Digest {
				return api.Errorf(api.Invalid, "the tree has digest %s", got)
			}
			return nil
		})
	case form == formRaw && kind == storage.Disk:
		return l.Pool.AddBase(ctx, id, kind, func(_ context.Context, path string) error {
			return unpackDisk(path, int64(image.DiskBytes), content)
		})
	}
	return api.Errorf(api.Unsupported, "the other host sends the %s as %q, which a pool of the driver %s can't read", kind, form, l.Pool.Driver())
}

func unpackDisk(path string, size int64, content *chunkReader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewReader(content, zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	n, err := copySparse(f, io.LimitReader(z, size+1))
	if err != nil {
		return err
	}
	if n != size {
		return api.Errorf(api.Invalid, "the disk has %d bytes, not %d", n, size)
	}
	return content.drain()
}

// chunkWriter writes chunks, and their digest at the end.
type chunkWriter struct {
	ctx context.Context
	w   io.Writer
	sum hash.Hash
}

func (c *chunkWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	c.sum.Write(p)
	if _, err := c.w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p)))); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

func (c *chunkWriter) end() error {
	_, err := c.w.Write(append(make([]byte, 4), c.sum.Sum(nil)...))
	return err
}

// chunkReader reads what a chunkWriter wrote. It ends with io.EOF only when all came, and as it was sent.
type chunkReader struct {
	r    io.Reader
	left uint32 // of the chunk
	done int64
	end  error
	sum  hash.Hash
	seen func(int64)
}

func (c *chunkReader) Read(p []byte) (int, error) {
	if c.end != nil {
		return 0, c.end
	}
	if c.left == 0 {
		if c.end = c.next(); c.end != nil {
			return 0, c.end
		}
	}
	n, err := c.r.Read(p[:min(len(p), int(c.left))])
	c.sum.Write(p[:n])
	c.left -= uint32(n)
	c.done += int64(n)
	c.seen(c.done)
	if err != nil {
		c.end = cutOff(err)
	}
	return n, c.end
}

func newChunkReader(r io.Reader, seen func(int64)) *chunkReader {
	return &chunkReader{r: r, sum: sha256.New(), seen: seen}
}

// next begins a chunk, or ends.
func (c *chunkReader) next() error {
	var length [4]byte
	if _, err := io.ReadFull(c.r, length[:]); err != nil {
		return cutOff(err)
	}
	if c.left = binary.BigEndian.Uint32(length[:]); c.left > 0 {
		return nil
	}
	var want [sha256.Size]byte
	if _, err := io.ReadFull(c.r, want[:]); err != nil {
		return cutOff(err)
	}
	if !bytes.Equal(c.sum.Sum(nil), want[:]) {
		return api.Errorf(api.Invalid, "what came is not what was sent: their digests differ")
	}
	return io.EOF
}

// drain reads the rest, which checks the digest.
func (c *chunkReader) drain() error {
	_, err := io.Copy(io.Discard, c)
	return err
}

func cutOff(err error) error {
	return api.Errorf(api.Unavailable, "the transfer was cut off: %w", noEOF(err))
}

// noEOF is err, unless that would be taken for the end of the content.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
