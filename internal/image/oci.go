package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"polder/api"
)

// layout is an OCI image layout inside a plain tar archive: the blobs are read where they are.
type layout struct {
	f     *os.File
	files map[string]extent
}

type extent struct{ at, size int64 }

// maxLayoutFiles and maxDocument bound what a layout may have.
const (
	maxLayoutFiles = 100_000
	maxDocument    = 4 << 20
)

// openLayout looks through a tar archive for an image layout; nil when it is none. Close it.
func openLayout(name string) (*layout, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	l := &layout{f: f, files: map[string]extent{}}
	if err := l.scan(); err != nil {
		f.Close()
		return nil, err
	}
	if _, ok := l.files["oci-layout"]; !ok {
		f.Close()
		return nil, nil
	}
	return l, nil
}

func (l *layout) Close() error { return l.f.Close() }

func (l *layout) scan() error {
	t := tar.NewReader(l.f)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) || n > maxLayoutFiles {
			return nil
		}
		if err != nil {
			return archiveError(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		// A system's root is no layout: don't look through all of it.
		if n > 64 && l.files["oci-layout"] == (extent{}) && !strings.HasPrefix(name, "blobs/") && name != "oci-layout" && name != "index.json" {
			return nil
		}
		at, err := l.f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if name == "oci-layout" || name == "index.json" || strings.HasPrefix(name, "blobs/") {
			l.files[name] = extent{at, h.Size}
		}
	}
}

// blob opens a blob; reading it to its end checks its digest.
func (l *layout) blob(d v1.Descriptor) (io.Reader, error) {
	if d.Digest.Algorithm != "sha256" {
		return nil, api.Errorf(api.Unsupported, "oci image: digest %s: want sha256", d.Digest)
	}
	if len(d.URLs) > 0 && d.Size == 0 {
		return nil, api.Errorf(api.Unsupported, "oci image: blob %s is kept elsewhere", d.Digest)
	}
	e, ok := l.files["blobs/sha256/"+d.Digest.Hex]
	if !ok {
		return nil, api.Errorf(api.Invalid, "oci image: blob %s is missing", d.Digest)
	}
	if e.size != d.Size {
		return nil, api.Errorf(api.Invalid, "oci image: blob %s has %d bytes, not %d", d.Digest, e.size, d.Size)
	}
	return &verifier{r: io.NewSectionReader(l.f, e.at, e.size), sum: sha256.New(), want: d.Digest.Hex, what: "blob " + d.Digest.String()}, nil
}

// document reads a small blob, checked.
func (l *layout) document(d v1.Descriptor) ([]byte, error) {
	if d.Size > maxDocument {
		return nil, api.Errorf(api.Invalid, "oci image: document %s has %d bytes: too many", d.Digest, d.Size)
	}
	r, err := l.blob(d)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// verifier reports at the end of what it reads whether it had the digest.
type verifier struct {
	r    io.Reader
	sum  hash.Hash
	want string // hex
	what string
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	if err == io.EOF && hex.EncodeToString(v.sum.Sum(nil)) != v.want {
		return n, api.Errorf(api.Invalid, "oci image: %s is damaged: its content has another digest", v.what)
	}
	return n, err
}

// ociImage is the one image of a layout that is for this machine.
type ociImage struct {
	Digest   string
	manifest *v1.Manifest
	config   *v1.ConfigFile
}

// image finds the image and reads its documents.
func (l *layout) image() (*ociImage, error) {
	e := l.files["index.json"]
	if e.size == 0 || e.size > maxDocument {
		return nil, api.Errorf(api.Invalid, "oci image: the layout has no index.json")
	}
	index, err := v1.ParseIndexManifest(io.NewSectionReader(l.f, e.at, e.size))
	if err != nil {
		return nil, api.Errorf(api.Invalid, "oci image: index.json: %w", err)
	}
	found := map[string]v1.Descriptor{}
	var others []string
	if err := l.collect(index, 0, found, &others); err != nil {
		return nil, err
	}
	switch {
	case len(found) == 0 && len(others) > 0:
		return nil, api.Errorf(api.Unsupported, "oci image: it is for %s, not for linux/%s", strings.Join(others, ", "), runtime.GOARCH)
	case len(found) != 1:
		return nil, api.Errorf(api.Invalid, "oci image: the layout has %d images for linux/%s: want one", len(found), runtime.GOARCH)
	}
	for _, d := range found {
		return l.open(d)
	}
	return nil, nil
}

// collect gathers the manifests that could be for this machine from an index and those in it.
func (l *layout) collect(index *v1.IndexManifest, depth int, found map[string]v1.Descriptor, others *[]string) error {
	if depth > 4 {
		return api.Errorf(api.Invalid, "oci image: indexes of indexes, too deep")
	}
	for _, d := range index.Manifests {
		switch {
		case d.MediaType.IsIndex():
			text, err := l.document(d)
			if err != nil {
				return err
			}
			inner, err := v1.ParseIndexManifest(bytes.NewReader(text))
			if err != nil {
				return api.Errorf(api.Invalid, "oci image: index %s: %w", d.Digest, err)
			}
			if err := l.collect(inner, depth+1, found, others); err != nil {
				return err
			}
		case !d.MediaType.IsImage() || d.Annotations["vnd.docker.reference.type"] != "":
			// attestations, signatures
		case d.Platform != nil && (d.Platform.OS != "linux" || d.Platform.Architecture != runtime.GOARCH):
			*others = append(*others, d.Platform.OS+"/"+d.Platform.Architecture)
		default:
			found[d.Digest.String()] = d
		}
	}
	return nil
}

func (l *layout) open(d v1.Descriptor) (*ociImage, error) {
	text, err := l.document(d)
	if err != nil {
		return nil, err
	}
	i := &ociImage{Digest: d.Digest.String()}
	if i.manifest, err = v1.ParseManifest(bytes.NewReader(text)); err != nil {
		return nil, api.Errorf(api.Invalid, "oci image: manifest %s: %w", d.Digest, err)
	}
	if text, err = l.document(i.manifest.Config); err != nil {
		return nil, err
	}
	if i.config, err = v1.ParseConfigFile(bytes.NewReader(text)); err != nil {
		return nil, api.Errorf(api.Invalid, "oci image: config %s: %w", i.manifest.Config.Digest, err)
	}
	if c := i.config; c.OS != "linux" || c.Architecture != runtime.GOARCH {
		return nil, api.Errorf(api.Unsupported, "oci image: it is for %s/%s, not for linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	}
	if len(i.config.RootFS.DiffIDs) != len(i.manifest.Layers) || len(i.manifest.Layers) == 0 {
		return nil, api.Errorf(api.Invalid, "oci image: %d layers, but %d in the config", len(i.manifest.Layers), len(i.config.RootFS.DiffIDs))
	}
	return i, nil
}

// size of the layers as they are in the layout.
func (i *ociImage) size() (total int64) {
	for _, d := range i.manifest.Layers {
		total += d.Size
	}
	return total
}

// unpack applies the layers to the empty directory dir. Each is checked against both its digests.
func (l *layout) unpack(ctx context.Context, i *ociImage, dir string, limits unpackLimits, progress func(done int64)) error {
	u, err := newUnpacker(dir, true, limits)
	if err != nil {
		return err
	}
	defer u.close()
	var done int64
	for n, d := range i.manifest.Layers {
		if err := l.layer(ctx, u, d, i.config.RootFS.DiffIDs[n], func(read int64) { progress(done + read) }); err != nil {
			return fmt.Errorf("layer %d of %d: %w", n+1, len(i.manifest.Layers), err)
		}
		done += d.Size
	}
	return u.finish()
}

func (l *layout) layer(ctx context.Context, u *unpacker, d v1.Descriptor, diff v1.Hash, progress func(int64)) error {
	how, err := layerCompression(d.MediaType)
	if err != nil {
		return err
	}
	blob, err := l.blob(d)
	if err != nil {
		return err
	}
	counted := &countingReader{r: blob, seen: progress}
	content, err := decompress(ctx, counted, how)
	if err != nil {
		return err
	}
	defer content.Close()
	if diff.Algorithm != "sha256" {
		return api.Errorf(api.Unsupported, "oci image: digest %s: want sha256", diff)
	}
	bounded := &boundedReader{r: content, in: counted, limit: u.limits.Bytes + int64(u.limits.Entries)*1024}
	whole := &verifier{r: bounded, sum: sha256.New(), want: diff.Hex, what: "layer " + diff.String()}
	if err := u.archive(ctx, whole); err != nil {
		return err
	}
	// What follows the compressed data belongs to the blob.
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return err
	}
	return nil
}

func layerCompression(t types.MediaType) (compression, error) {
	switch s := string(t); {
	case !t.IsDistributable() || !t.IsLayer():
		return plain, api.Errorf(api.Unsupported, "oci image: a layer of type %q", s)
	case strings.HasSuffix(s, "gzip"):
		return gz, nil
	case strings.HasSuffix(s, "zstd"):
		return zst, nil
	}
	return plain, nil
}

// appConfig is how an application image is run; nil: it says nothing.
func (i *ociImage) appConfig() *api.ImageConfig {
	c := i.config.Config
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		return nil
	}
	return &api.ImageConfig{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, User: c.User, StopSignal: c.StopSignal}
}
