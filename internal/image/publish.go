package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
	"polder/internal/operation"
	"polder/internal/storage"
)

const kindPublish = "image.publish"

// Source is the volume that an image is made of: a virtual environment's, or a snapshot's.
type Source struct {
	Volume string           `json:"volume"`
	Of     string           `json:"of"`               // for people
	Config *api.ImageConfig `json:"config,omitempty"` // of an application
}

// Publish starts an operation that makes an image of what a volume holds, without what its system is known by. req says on which host it
// is, and what is held meanwhile. The operation's result is the api.Image.
func (l *Library) Publish(ctx context.Context, want api.PublishRequest, from Source, req operation.Request) (api.Operation, error) {
	if err := checkAlias(want.Alias); err != nil {
		return api.Operation{}, err
	}
	state := making{Alias: want.Alias, Replace: want.Replace, Source: &from}
	state.Image.Description = want.Description
	if err := l.checkAliasFree(ctx, &state); err != nil {
		return api.Operation{}, err
	}
	req.Target = "image/" + want.Alias
	return operation.Start(ctx, l.Engine, kindPublish, req, state)
}

func (l *Library) registerPublish() {
	operation.Register(l.Engine, operation.Definition[making]{
		Kind: kindPublish,
		Steps: l.makingSteps(
			operation.Step[making]{Name: "copy", Do: l.copySource, Undo: l.removeWork},
			operation.Step[making]{Name: "read", Do: l.readSource},
		),
		PointOfNoReturn: "publish",
	})
}

// publishedVolume is the copy of the source that the operation reads; the source may go on, or go.
func publishedVolume(r *makingRun) string { return "publish-" + r.ID }

func (l *Library) copySource(ctx context.Context, r *makingRun) error {
	_, err := l.Pool.Copy(ctx, r.State.Source.Volume, publishedVolume(r))
	return err
}

// readSource computes the digest of the system, as it goes into the image.
func (l *Library) readSource(ctx context.Context, r *makingRun) error {
	s := &r.State
	sum := sha256.New()
	err := l.withSystem(ctx, r, func(root string, o packing) error { return packTree(ctx, root, sum, o) })
	if err != nil {
		return err
	}
	if s.Source.Config != nil {
		if err := json.NewEncoder(sum).Encode(s.Source.Config); err != nil {
			return err
		}
	}
	s.Image = api.Image{
		Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Description: s.Image.Description, CreatedAt: time.Now().UTC(), Config: s.Source.Config,
		Provenance: api.Provenance{Method: "publish", Source: s.Source.Of},
	}
	return nil
}

// withSystem gives do the root of the system that the operation has copied, for reading, and how it is packed.
func (l *Library) withSystem(ctx context.Context, r *makingRun, do func(root string, o packing) error) (err error) {
	work := l.work(r)
	root := filepath.Join(work, "root")
	if err := removeTree(work); err != nil { // of a run that was cut off
		return err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	v, err := l.Pool.Volume(ctx, publishedVolume(r))
	if err != nil {
		return err
	}
	switch {
	case v.Kind == storage.Disk:
		if err = mountDisk(ctx, v, work, root); err != nil {
			return fmt.Errorf("read the disk: %w", err)
		}
	case v.Lower != "":
		if err = unix.Mount("overlay", root, "overlay", unix.MS_RDONLY, "lowerdir="+v.Upper+":"+v.Lower); err != nil {
			return fmt.Errorf("read the tree: %w", err)
		}
	default:
		root = v.Path
	}
	defer func() { err = errors.Join(err, removeTree(work)) }() // which unmounts it
	clean, err := newCleaner(root, v.Kind == storage.Tree)
	if err != nil {
		return err
	}
	return do(root, packing{clean: clean, progress: func(n int64) { r.Progress(n, 0, "bytes") }})
}

// mountDisk mounts the root file system of a disk of ours for reading, by a program of its own: a file system that a guest has
// written is not for the kernel to read.
func mountDisk(ctx context.Context, v storage.Volume, work, root string) error {
	path := v.Path
	if v.Format != "raw" {
		path = filepath.Join(work, "disk")
		if _, err := qemuImg(ctx, "convert", "-f", v.Format, "-O", "raw", v.Path, path); err != nil {
			return full(err)
		}
	}
	system := filepath.Join(work, "system")
	start, size, err := rootOf(path)
	if err != nil {
		return err
	}
	part := fmt.Sprintf("driver=raw,offset=%d,size=%d,file.driver=file,file.filename=%s", start, size, strings.ReplaceAll(path, ",", ",,"))
	if _, err := qemuImg(ctx, "convert", "--image-opts", "-O", "raw", part, system); err != nil {
		return full(err)
	}
	// What was written last may be in its journal only.
	if _, err := command.Run(ctx, nil, "e2fsck", "-p", "-E", "journal_only", system); err != nil {
		return err
	}
	if _, err := command.Run(ctx, nil, "fuse2fs", "-o", "ro", system, root); err != nil {
		return err
	}
	// It says by its exit status that it could when it could not.
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Type != unix.FUSE_SUPER_MAGIC {
		return api.Errorf(api.Internal, "fuse2fs has not mounted it (%v)", err)
	}
	return nil
}

// full gives an error its kind when there is no room.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return api.Errorf(api.Exhausted, "%w", err)
	}
	return err
}
