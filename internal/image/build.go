package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"polder/api"
	"polder/internal/command"
	"polder/internal/operation"
)

const kindBuild = "image.build"

// Build starts an operation that makes an image of a distribution's packages. Where the alias names an image already, it moves to the
// new one. Its result is the api.Image.
func (l *Library) Build(ctx context.Context, req api.ImageBuildRequest) (api.Operation, error) {
	s, err := parseSuite(req.Source)
	if err != nil {
		return api.Operation{}, err
	}
	if req.Alias == "" {
		req.Alias = req.Source
	}
	if err := checkAlias(req.Alias); err != nil {
		return api.Operation{}, err
	}
	b := bootstrap{suite: s, mirror: req.Mirror, packages: req.Packages}
	if err := b.check(); err != nil {
		return api.Operation{}, err
	}
	for _, tool := range []string{"mmdebstrap", "mke2fs", "sfdisk", "mkfs.vfat", "mcopy", "grub-mkimage", "debugfs"} {
		if _, err := command.Find(tool); err != nil {
			return api.Operation{}, fmt.Errorf("build image %s: %w", req.Source, err)
		}
	}
	state := making{Alias: req.Alias, Replace: true, Build: &req}
	return operation.Start(ctx, l.Engine, kindBuild, operation.Request{Target: "image/" + req.Alias}, state)
}

func (l *Library) registerBuild() {
	operation.Register(l.Engine, operation.Definition[making]{
		Kind:            kindBuild,
		Steps:           l.makingSteps(operation.Step[making]{Name: "packages", Do: l.buildTree, Undo: l.removeWork}),
		PointOfNoReturn: "publish",
	})
}

// buildTree makes the tree in the working directory and its digest.
func (l *Library) buildTree(ctx context.Context, r *makingRun) error {
	state := &r.State
	req := state.Build
	s, err := parseSuite(req.Source)
	if err != nil {
		return err
	}
	work := l.work(r)
	if err := removeTree(work); err != nil { // of a run that was cut off
		return err
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	b := bootstrap{
		suite: s, mirror: req.Mirror, packages: req.Packages, cloudInit: req.CloudInit, work: work, cache: l.Cache,
		progress: func(done, total int64) { r.Progress(done, total, "items") },
	}
	start := time.Now()
	if state.Epoch, err = b.release(ctx); err != nil {
		return err
	}
	if err := b.run(ctx, state.Epoch); err != nil {
		return err
	}
	if err := checkIdentity(b.root(), true); err != nil {
		return err
	}
	built := time.Now()
	sum := sha256.New()
	if err := packTree(ctx, b.root(), sum, packing{latest: state.Epoch}); err != nil {
		return err
	}
	r.Log().Info("image tree built", "source", req.Source, "packages", built.Sub(start), "digest", time.Since(built))
	mirror := req.Mirror
	if mirror == "" {
		mirror = s.Mirror
	}
	state.Image = api.Image{
		Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Description: req.Description, CreatedAt: time.Now().UTC(),
		Provenance: api.Provenance{
			Method: "build", Source: fmt.Sprintf("%s %s, release of %s", mirror, s.Code, state.Epoch.UTC().Format(time.DateOnly)),
			Tools: map[string]string{"mmdebstrap": toolVersion(ctx, "mmdebstrap"), "grub": toolVersion(ctx, "grub-mkimage")},
		},
	}
	return nil
}

// toolVersion is the last word of what a tool says of itself.
func toolVersion(ctx context.Context, tool string) string {
	out, err := command.Run(ctx, nil, tool, "--version")
	words := strings.Fields(string(out))
	if err != nil || len(words) == 0 {
		return "unknown"
	}
	return words[len(words)-1]
}

// identities are files that make a machine one of its kind: no image may have them.
var identities = []string{
	"etc/hostname", "etc/ssh/ssh_host_*", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "var/lib/dhcp/*.leases",
	"var/lib/cloud/instance*", "etc/udev/rules.d/70-persistent-*",
}

// checkIdentity looks at a tree for what every virtual environment must make for itself. One that was built here has an empty file where
// the machine id comes; another (built is false) may be without.
func checkIdentity(tree string, built bool) error {
	for _, pattern := range identities {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		if len(found) > 0 {
			return api.Errorf(api.Internal, "the image has an identity: %s", strings.TrimPrefix(found[0], tree))
		}
	}
	info, err := os.Lstat(filepath.Join(tree, "etc/machine-id"))
	if errors.Is(err, fs.ErrNotExist) && !built {
		return nil
	}
	if err != nil || !info.Mode().IsRegular() || info.Size() != 0 {
		return api.Errorf(api.Internal, "the image has an identity: /etc/machine-id is not an empty file (%v)", err)
	}
	if info, err := os.Lstat(filepath.Join(tree, "var/lib/dbus/machine-id")); err == nil && info.Mode().IsRegular() {
		return api.Errorf(api.Internal, "the image has an identity: /var/lib/dbus/machine-id")
	}
	return nil
}
