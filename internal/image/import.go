package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/operation"
)

const (
	kindImport  = "image.import"
	spoolPrefix = "import-"
)

// Import reads body to its end into the staging directory, then starts an operation that makes an image of it. It blocks for as
// long as the body comes. The operation's result is the api.Image; a file that was imported before gets the alias only.
func (l *Library) Import(ctx context.Context, req api.ImageImportRequest, body io.Reader) (api.Operation, error) {
	if err := checkAlias(req.Alias); err != nil {
		return api.Operation{}, err
	}
	switch req.Format {
	case api.FormatAuto, api.FormatTar, api.FormatSquashFS, api.FormatQcow2, api.FormatRaw, api.FormatOCI:
	default:
		return api.Operation{}, api.Errorf(api.Invalid, "import image %s: format %q: want tar, squashfs, qcow2, raw or oci", req.Alias, req.Format)
	}
	spool, err := os.MkdirTemp(l.Staging, spoolPrefix)
	if err != nil {
		return api.Operation{}, fmt.Errorf("import image %s: %w", req.Alias, err)
	}
	op, err := l.spool(ctx, req, body, spool)
	if err != nil {
		return api.Operation{}, errors.Join(err, os.RemoveAll(spool))
	}
	return op, nil
}

func (l *Library) spool(ctx context.Context, req api.ImageImportRequest, body io.Reader, dir string) (api.Operation, error) {
	free, err := freeSpace(l.Staging)
	if err != nil {
		return api.Operation{}, err
	}
	if int64(req.SizeBytes) > free {
		return api.Operation{}, api.Errorf(api.Exhausted, "import image %s: the file has %s, there is room for %s", req.Alias, req.SizeBytes, api.Bytes(free))
	}
	f, err := os.OpenFile(filepath.Join(dir, "payload"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return api.Operation{}, err
	}
	n, err := copySparse(f, &boundedBody{ctx: ctx, r: body, left: free})
	if err == nil {
		err = f.Sync() // the operation may be resumed after a crash
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		kind := api.KindOf(err)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			kind = api.Exhausted
		}
		return api.Operation{}, api.Errorf(kind, "import image %s: receive the file: %w", req.Alias, err)
	}
	if req.SizeBytes > 0 && n != int64(req.SizeBytes) {
		return api.Operation{}, api.Errorf(api.Invalid, "import image %s: received %d bytes of %d", req.Alias, n, int64(req.SizeBytes))
	}
	state := making{Alias: req.Alias, Import: &req, Spool: dir}
	return operation.Start(ctx, l.Engine, kindImport, operation.Request{Target: "image/" + req.Alias}, state)
}

// boundedBody ends a request body when its context does, or the room.
type boundedBody struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, api.Errorf(api.Cancelled, "%w", err)
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, api.Errorf(api.Exhausted, "no room left for it")
	}
	return n, err
}

// copySparse copies into a new file. Blocks of zeros become holes: a raw disk is mostly that.
func copySparse(f *os.File, r io.Reader) (int64, error) {
	var size int64
	block := make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(r, block)
		if n > 0 && !allZero(block[:n]) {
			if _, err := f.WriteAt(block[:n], size); err != nil {
				return size, err
			}
		}
		size += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			// ReadFull says the latter for the last block, but so may the body when it breaks off.
			if _, again := r.Read(block[:1]); again != io.EOF {
				return size, err
			}
			return size, f.Truncate(size)
		}
		if err != nil {
			return size, err
		}
	}
}

// freeSpace is how much may be written to a directory's file system.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look at %s: %w", dir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	return free - free/32, nil
}

func (l *Library) registerImport() {
	operation.Register(l.Engine, operation.Definition[making]{
		Kind:            kindImport,
		Steps:           l.makingSteps(operation.Step[making]{Name: "read", Do: l.readPayload, Undo: l.removeWork}),
		PointOfNoReturn: "publish",
	})
}

// payload is the file that is imported: as it came, or decompressed.
func (l *Library) payload(r *makingRun) string {
	if path := filepath.Join(l.work(r), "payload"); r.State.Import != nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return filepath.Join(r.State.Spool, "payload")
}

// readPayload finds out what was given, decompresses it, and computes its digest. Everything in it is still unchecked.
func (l *Library) readPayload(ctx context.Context, r *makingRun) error {
	s := &r.State
	if err := removeTree(l.work(r)); err != nil { // of a run that was cut off
		return err
	}
	if err := os.MkdirAll(l.work(r), 0o700); err != nil {
		return err
	}
	original := filepath.Join(s.Spool, "payload")
	format, how, err := sniffFile(original)
	if err != nil {
		return err
	}
	if want := s.Import.Format; want != api.FormatAuto && want != format && (want != api.FormatOCI || format != api.FormatTar) {
		return api.Errorf(api.Invalid, "the file is no %s: it looks like %s", want, format)
	}
	digest, err := l.digestPayload(ctx, r, original, how)
	if err != nil {
		return err
	}
	s.Format = format
	s.Image = api.Image{
		Digest: digest, Description: s.Import.Description, CreatedAt: time.Now().UTC(),
		Provenance: api.Provenance{Method: provenance[format], Source: filepath.Base(s.Import.Filename)},
	}
	switch format {
	case api.FormatQcow2, api.FormatRaw:
		return l.readDisk(ctx, r, original)
	case api.FormatTar:
		return l.readLayout(r)
	default:
		return nil
	}
}

var provenance = map[api.ImageFormat]string{
	api.FormatTar: "tar", api.FormatSquashFS: "squashfs", api.FormatQcow2: "disk", api.FormatRaw: "disk", api.FormatOCI: "oci",
}

// digestPayload computes the digest of the decompressed file, and keeps that beside a compressed one.
func (l *Library) digestPayload(ctx context.Context, r *makingRun, path string, how compression) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	free, err := freeSpace(l.Staging)
	if err != nil {
		return "", err
	}
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	counted := &countingReader{r: f, seen: func(n int64) { r.Progress(n, info.Size(), "bytes") }}
	content, err := decompress(ctx, counted, how)
	if err != nil {
		return "", err
	}
	defer content.Close()
	sum := sha256.New()
	out := io.Writer(sum)
	in := io.Reader(&boundedBody{ctx: ctx, r: content, left: 1<<63 - 1})
	if how != plain {
		in = &boundedReader{r: in, in: counted, limit: free}
		kept, err := os.OpenFile(filepath.Join(l.work(r), "payload"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return "", err
		}
		defer kept.Close()
		out = io.MultiWriter(sum, kept)
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, 1<<20)); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return "", api.Errorf(api.Exhausted, "unpack the file: %w", err)
		}
		return "", err
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// readDisk checks a disk image file before anything else opens it.
func (l *Library) readDisk(ctx context.Context, r *makingRun, path string) error {
	if _, err := checkDisk(ctx, path, r.State.Format); err != nil {
		return err
	}
	r.State.Image.Provenance.Tools = map[string]string{"qemu-img": qemuImgVersion(ctx)}
	return nil
}

func qemuImgVersion(ctx context.Context) string {
	out, err := qemuImg(ctx, "--version")
	var version string
	if err == nil {
		_, _ = fmt.Sscanf(string(out), "qemu-img version %s", &version)
	}
	return version
}

// readLayout recognizes an OCI image, which is known by its manifest's digest.
func (l *Library) readLayout(r *makingRun) error {
	s := &r.State
	lay, err := openLayout(l.payload(r))
	if err != nil {
		return err
	}
	if lay == nil {
		if s.Import.Format == api.FormatOCI {
			return api.Errorf(api.Invalid, "the archive is no OCI image layout: it has no oci-layout file")
		}
		return nil
	}
	defer lay.Close()
	image, err := lay.image()
	if err != nil {
		return err
	}
	s.Format = api.FormatOCI
	s.Image.Digest, s.Image.Config = image.Digest, image.appConfig()
	s.Image.Provenance.Method = provenance[api.FormatOCI]
	return nil
}
