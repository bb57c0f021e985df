package vm

import (
	"context"
	"fmt"
	"os"
	"time"

	"polder/api"
	"polder/internal/model"
)

// copyDisk makes the target's disk what the VE's is, and keeps it so: from its return on, each write of the VE goes to both
// before the VE hears that it is done.
//
// Of a raw disk whose other end is raw too, what differs from the base goes first, where the file system knows that, else it is compared
// (see sendDelta), while a bitmap notes what is written meanwhile.
// Then a mirror that copies nothing by itself passes on all writes, and a backup copies what the bitmap has: before a block
// that the backup has yet to copy is written to, the backup copies it, and only then the mirror writes the new content. So the
// mirror must be above the backup: it is on the disk, the backup on the file below. QEMU (10.0) has no mirror that starts from a bitmap.
func (x *sending) copyDisk(ctx context.Context, r *ready) error {
	if r.Disk != diskDelta {
		return x.mirror(ctx, r, map[diskMode]string{diskTop: "top", diskFull: "full"}[r.Disk])
	}
	if err := x.do(ctx, "block-dirty-bitmap-add", map[string]any{"node": diskFile, "name": moveBitmap, "granularity": deltaBlock}); err != nil {
		return err
	}
	if err := x.delta(ctx); err != nil {
		return fmt.Errorf("copy the disk: %w", err)
	}
	if err := x.mirror(ctx, r, "none"); err != nil {
		return err
	}
	if err := x.addDisk(ctx, r, backupDisk); err != nil {
		return err
	}
	if err := x.do(ctx, "blockdev-backup", map[string]any{
		"job-id": backupWork, "device": diskFile, "target": backupDisk, "sync": "bitmap", "bitmap": moveBitmap, "bitmap-mode": "never",
		"auto-dismiss": false, "speed": int64(x.options.Bandwidth),
	}); err != nil {
		return err
	}
	if err := x.finish(ctx, backupWork); err != nil {
		return err
	}
	if err := x.do(ctx, "blockdev-del", map[string]any{"node-name": backupDisk}); err != nil {
		return err
	}
	return x.do(ctx, "block-dirty-bitmap-remove", map[string]any{"node": diskFile, "name": moveBitmap})
}

func (x *sending) delta(ctx context.Context) error {
	s, err := x.session.Stream(ctx, diskStream)
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	f, err := os.Open(x.ve.Root.Disk)
	if err != nil {
		return err
	}
	defer f.Close()
	counter := &counted{Stream: s}
	var changes []model.Span
	known := false
	if x.options.Changes != nil {
		if changes, known, err = x.options.Changes(ctx); err != nil {
			return err
		}
	}
	if known {
		err = sendChanges(ctx, counter, f, changes)
	} else {
		err = sendDelta(ctx, counter, f)
	}
	x.sent.Bytes += api.Bytes(counter.n)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// counted counts what is written to a stream.
type counted struct {
	model.Stream
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Stream.Write(p)
	c.n += int64(n)
	return n, err
}

// addDisk connects to the target's disk. Flushes don't go there, which would let the VE stand still for one more: the target puts
// all on its disk by itself, and says that the VE is whole only then.
func (x *sending) addDisk(ctx context.Context, r *ready, name string) error {
	return x.do(ctx, "blockdev-add", map[string]any{
		"driver": "nbd", "node-name": name, "export": diskFormat, "tls-creds": moveKey, "discard": "unmap", "detect-zeroes": "unmap",
		"cache":  map[string]any{"no-flush": true},
		"server": map[string]any{"type": "inet", "host": x.session.Peer().String(), "port": r.DiskPort},
	})
}

// mirror starts to write to both disks, and waits until they are alike, as far as sync says.
func (x *sending) mirror(ctx context.Context, r *ready, sync string) error {
	if err := x.addDisk(ctx, r, mirrorDisk); err != nil {
		return err
	}
	if err := x.do(ctx, "blockdev-mirror", map[string]any{
		"job-id": mirrorWork, "device": diskFormat, "target": mirrorDisk, "sync": sync, "copy-mode": "write-blocking",
		"auto-dismiss": false, "speed": int64(x.options.Bandwidth),
	}); err != nil {
		return err
	}
	return x.await(ctx, 50*time.Millisecond, func() (bool, error) {
		all, err := x.works(ctx)
		if err != nil {
			return false, err
		}
		w := all[mirrorWork]
		if x.options.Progress != nil && w.Status == "running" {
			x.options.Progress(w.Done, w.Total, "bytes")
		}
		if w.Status == "concluded" || w.Status == "" {
			return false, w.failed()
		}
		return w.Status == "ready", nil
	})
}

func (w work) failed() error {
	if w.Problem == "" {
		return api.Errorf(api.Internal, "the disk's copy ended before its time")
	}
	return fmt.Errorf("copy the disk: %s", w.Problem)
}

// finish waits for a block job's end and takes it away.
func (x *sending) finish(ctx context.Context, id string) error {
	return x.await(ctx, 5*time.Millisecond, func() (bool, error) {
		all, err := x.works(ctx)
		if err != nil {
			return false, err
		}
		w, ok := all[id]
		switch {
		case !ok:
			return false, w.failed()
		case w.Status != "concluded":
			return false, nil
		case w.Problem != "":
			return false, w.failed()
		}
		x.add(w.Done)
		return true, x.do(ctx, "job-dismiss", map[string]any{"id": id})
	})
}

// endMirror leaves the two disks alike, and the target's to the target. The VE stands still.
func (x *sending) endMirror(ctx context.Context) error {
	all, err := x.works(ctx)
	if err != nil {
		return err
	}
	// One that has failed is not ready, and would be ended without a word.
	if w := all[mirrorWork]; w.Status != "ready" {
		return w.failed()
	}
	if err := x.do(ctx, "block-job-cancel", map[string]any{"device": mirrorWork}); err != nil {
		return err
	}
	if err := x.finish(ctx, mirrorWork); err != nil {
		return err
	}
	return x.do(ctx, "blockdev-del", map[string]any{"node-name": mirrorDisk})
}
