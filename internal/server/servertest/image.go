package servertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"polder/api"
)

// find is an image by alias or digest; mu is held.
func (b *Backend) find(ref string) (api.Image, bool) {
	for _, image := range b.images {
		if image.Digest == ref || slices.Contains(image.Aliases, ref) {
			return image, true
		}
	}
	return api.Image{}, false
}

// Images implements server.Backend.
func (b *Backend) Images(context.Context) ([]api.Image, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var images []api.Image
	for _, digest := range slices.Sorted(maps.Keys(b.images)) {
		images = append(images, b.images[digest])
	}
	return images, nil
}

// Image implements server.Backend.
func (b *Backend) Image(_ context.Context, ref string) (api.Image, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	image, ok := b.find(ref)
	if !ok {
		return image, api.Errorf(api.NotFound, "image %q not found; see: polder image list", ref)
	}
	return image, nil
}

// add starts an operation that adds an image; mu is held.
func (b *Backend) add(kind, alias string, content []byte, p api.Provenance) api.Operation {
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(content))
	return b.start(kind, "image/"+alias, "", func() {
		b.content[digest] = content
		b.images[digest] = api.Image{
			Digest: digest, Aliases: []string{alias}, Models: []api.Model{api.Container}, SizeBytes: api.Bytes(len(content)), CreatedAt: epoch, Provenance: p,
		}
	})
}

// Publish implements server.Backend.
func (b *Backend) Publish(_ context.Context, name string, req api.PublishRequest) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ve, err := b.ve(name)
	switch _, taken := b.find(req.Alias); {
	case err != nil:
		return api.Operation{}, err
	case req.Snapshot == "" && ve.State != api.Stopped:
		return api.Operation{}, api.Errorf(api.Precondition, "publish ve %q: it is %s", name, ve.State)
	case req.Snapshot != "" && b.snapshotAt(name, req.Snapshot) < 0:
		return api.Operation{}, api.Errorf(api.NotFound, "ve %q has no snapshot %q", name, req.Snapshot)
	case taken && !req.Replace:
		return api.Operation{}, api.Errorf(api.Exists, "alias %q is taken", req.Alias)
	}
	return b.add("image.publish", req.Alias, []byte(name+req.Snapshot), api.Provenance{Method: "publish", Source: "ve " + name}), nil
}

// BuildImage implements server.Backend.
func (b *Backend) BuildImage(_ context.Context, req api.ImageBuildRequest) (api.Operation, error) {
	if !strings.HasPrefix(req.Source, "debian/") {
		return api.Operation{}, api.Errorf(api.Invalid, "build image %q: unknown source", req.Source)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	alias := req.Alias
	if alias == "" {
		alias = req.Source
	}
	return b.add("image build", alias, []byte(req.Source), api.Provenance{Method: "build", Source: req.Source}), nil
}

// ImportImage implements server.Backend. A content that begins with "bad" is refused before the rest is read.
func (b *Backend) ImportImage(_ context.Context, req api.ImageImportRequest, body io.Reader) (api.Operation, error) {
	start := make([]byte, 3)
	n, err := io.ReadFull(body, start)
	if string(start) == "bad" {
		return api.Operation{}, api.Errorf(api.Invalid, "import image %q: the file is no image", req.Alias)
	}
	content := bytes.NewBuffer(start[:n])
	if err == nil {
		_, err = io.Copy(content, body)
	}
	if err != nil {
		return api.Operation{}, api.Errorf(api.Invalid, "import image %q: read the file: %w", req.Alias, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.add("image import", req.Alias, content.Bytes(), api.Provenance{Method: string(req.Format), Source: req.Filename}), nil
}

// ExportImage implements server.Backend.
func (b *Backend) ExportImage(ctx context.Context, ref string, format api.ImageFormat, w io.Writer) error {
	image, err := b.Image(ctx, ref)
	if err != nil {
		return err
	}
	if format == api.FormatSquashFS {
		return api.Errorf(api.Unsupported, "export image %q: mksquashfs is missing", ref)
	}
	b.mu.Lock()
	content := b.content[image.Digest]
	b.mu.Unlock()
	_, err = w.Write(content)
	return err
}

// DeleteImage implements server.Backend.
func (b *Backend) DeleteImage(_ context.Context, ref string) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	image, ok := b.find(ref)
	if !ok {
		return api.Operation{}, api.Errorf(api.NotFound, "image %q not found; see: polder image list", ref)
	}
	return b.start("image delete", "image/"+ref, "", func() { delete(b.images, image.Digest) }), nil
}

// Networks implements server.Backend.
func (b *Backend) Networks(context.Context) ([]api.Network, error) {
	return []api.Network{{Name: "default", Bridge: "polder0", IPv4: "10.87.0.1/24", IPv6: "fd00::1/64", Domain: "polder.internal", NAT: true, MTU: 1500}}, nil
}

// ChangeNetwork implements server.Backend: host h1 has no WireGuard.
func (b *Backend) ChangeNetwork(ctx context.Context, name string, change api.NetworkChange) (api.Network, error) {
	if name != "default" {
		return api.Network{}, api.Errorf(api.NotFound, "network %q: no such network", name)
	}
	if change.Encrypted != nil && *change.Encrypted {
		return api.Network{}, api.Errorf(api.Precondition, "encrypt between hosts: host \"h1\" can't")
	}
	all, err := b.Networks(ctx)
	return all[0], err
}

// Pools implements server.Backend.
func (b *Backend) Pools(context.Context) ([]api.Pool, error) {
	return []api.Pool{{Name: "default", Host: "h1", Driver: "btrfs", Path: "/pool", TotalBytes: 8 * api.GiB, FreeBytes: 6 * api.GiB, Volumes: 1}}, nil
}

// Volumes implements server.Backend.
func (b *Backend) Volumes(_ context.Context, pool string) ([]api.Volume, error) {
	if pool != "default" {
		return nil, api.Errorf(api.NotFound, "pool %q not found; see: polder pool list", pool)
	}
	return []api.Volume{{Name: "v1", Host: "h1", Pool: pool, VE: "c1", SizeBytes: 10 * api.GiB, UsedBytes: 12 * api.MiB}}, nil
}

// Capabilities implements server.Backend.
func (b *Backend) Capabilities(context.Context) ([]api.Capability, error) {
	return []api.Capability{
		{Name: "kvm", Level: api.Missing, Detail: "no /dev/kvm", Remedy: "modprobe kvm_intel"},
		{Name: "crun", Level: api.OK, Detail: "1.21"},
	}, nil
}
