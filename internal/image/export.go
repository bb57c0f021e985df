package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"polder/api"
	"polder/internal/command"
	"polder/internal/storage"
)

// Export writes an image in a format (default oci): the root as an OCI image layout in a tar, a plain tar or a squashfs, or the disk as raw or
// qcow2. It blocks until all is written; what can be wrong with the request shows before the first byte.
func (l *Library) Export(ctx context.Context, ref string, format api.ImageFormat, w io.Writer) error {
	rec, err := l.resolve(ctx, ref)
	if err != nil {
		return err
	}
	if format == api.FormatAuto {
		format = api.FormatOCI
	}
	kind := storage.Tree
	switch format {
	case api.FormatOCI, api.FormatTar, api.FormatSquashFS:
	case api.FormatRaw, api.FormatQcow2:
		kind = storage.Disk
	default:
		return api.Errorf(api.Invalid, "export image %s: format %q: want oci, tar, squashfs, raw or qcow2", ref, format)
	}
	if kind == storage.Tree && !rec.Value.Tree || kind == storage.Disk && !rec.Value.Disk {
		return api.Errorf(api.Unsupported, "export image %s as %s: it has no %s", ref, format, kind)
	}
	work, err := os.MkdirTemp(l.Staging, "export-")
	if err != nil {
		return fmt.Errorf("export image %s: %w", ref, err)
	}
	defer os.RemoveAll(work)
	if err := l.claim(rec.Key, work, beingExported); err != nil {
		return err
	}
	defer l.unclaim(rec.Key, work)
	path, err := l.Pool.Base(ctx, baseID(rec.Key), kind)
	if err != nil {
		return err
	}
	if err := l.export(ctx, rec.Value.Image, format, path, work, w); err != nil {
		return fmt.Errorf("export image %s as %s: %w", ref, format, err)
	}
	return nil
}

func (l *Library) export(ctx context.Context, image api.Image, format api.ImageFormat, path, work string, w io.Writer) error {
	file := filepath.Join(work, "image")
	switch format {
	case api.FormatTar:
		return packTree(ctx, path, w, packing{})
	case api.FormatOCI:
		return exportLayout(ctx, image, path, work, w)
	case api.FormatRaw:
		file = path
	case api.FormatQcow2:
		if _, err := command.Run(ctx, nil, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, file); err != nil {
			return err
		}
	case api.FormatSquashFS:
		if err := packSquash(ctx, path, file); err != nil {
			return err
		}
	default:
		return api.Errorf(api.Internal, "image format %q", format)
	}
	return sendFile(ctx, file, w)
}

// packSquash makes a squashfs of the same archive that a tar export is.
func packSquash(ctx context.Context, tree, file string) error {
	out, in := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := packTree(ctx, tree, in, packing{})
		in.CloseWithError(err)
		return err
	})
	g.Go(func() error {
		// The default level takes eight times as long, for a tenth less.
		_, err := command.Run(ctx, out, "tar2sqfs", "--quiet", "--compressor", "zstd", "--comp-extra", "level=3", "--force", file)
		out.CloseWithError(err)
		return err
	})
	return g.Wait()
}

func sendFile(ctx context.Context, path string, w io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, &boundedBody{ctx: ctx, r: f, left: 1<<63 - 1})
	return err
}

// exportLayout writes an OCI image layout with one layer.
func exportLayout(ctx context.Context, image api.Image, tree, work string, w io.Writer) error {
	file := filepath.Join(work, "layer")
	layer, diff, err := writeLayer(ctx, tree, file)
	if err != nil {
		return err
	}
	created := v1.Time{Time: image.CreatedAt}
	config := v1.ConfigFile{
		Architecture: image.Arch, OS: "linux", Created: created,
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		History: []v1.History{{Created: created, CreatedBy: "polder image export", Comment: image.Description}},
	}
	if c := image.Config; c != nil {
		config.Config = v1.Config{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, User: c.User, StopSignal: c.StopSignal}
	}
	configText, configBlob, err := document(types.OCIConfigJSON, config)
	if err != nil {
		return err
	}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: configBlob, Layers: []v1.Descriptor{layer}}
	manifestText, manifestBlob, err := document(types.OCIManifestSchema1, manifest)
	if err != nil {
		return err
	}
	manifestBlob.Platform = &v1.Platform{OS: "linux", Architecture: image.Arch}
	if len(image.Aliases) > 0 {
		manifestBlob.Annotations = map[string]string{"org.opencontainers.image.ref.name": image.Aliases[0]}
	}
	indexText, _, err := document(types.OCIImageIndex, v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifestBlob},
	})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, small := range []struct {
		name string
		text []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", indexText},
		{"blobs/sha256/" + manifestBlob.Digest.Hex, manifestText},
		{"blobs/sha256/" + configBlob.Digest.Hex, configText},
	} {
		if err := writeMember(t, small.name, int64(len(small.text)), bytes.NewReader(small.text)); err != nil {
			return err
		}
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writeMember(t, "blobs/sha256/"+layer.Digest.Hex, layer.Size, &boundedBody{ctx: ctx, r: f, left: 1<<63 - 1}); err != nil {
		return err
	}
	return t.Close()
}

func writeMember(t *tar.Writer, name string, size int64, content io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := io.Copy(t, content)
	return err
}

// document is a JSON blob and its descriptor.
func document(media types.MediaType, v any) ([]byte, v1.Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	sum := sha256.Sum256(text)
	return slices.Clip(text), v1.Descriptor{MediaType: media, Size: int64(len(text)), Digest: hashOf(sum[:])}, nil
}

func hashOf(sum []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum)} }

// writeLayer packs and compresses a tree into a file.
func writeLayer(ctx context.Context, tree, file string) (layer v1.Descriptor, diff v1.Hash, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return layer, diff, err
	}
	defer f.Close()
	packed, plainSum := sha256.New(), sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, packed), gzip.BestSpeed)
	if err != nil {
		return layer, diff, err
	}
	if err := packTree(ctx, tree, io.MultiWriter(z, plainSum), packing{}); err != nil {
		return layer, diff, err
	}
	if err := z.Close(); err != nil {
		return layer, diff, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return layer, diff, err
	}
	layer = v1.Descriptor{MediaType: types.OCILayer, Size: size, Digest: hashOf(packed.Sum(nil))}
	return layer, hashOf(plainSum.Sum(nil)), f.Close()
}
