package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"polder/api"
	"polder/internal/command"
)

// PrepareDisk makes use of all of a fresh clone's size: the root partition grows to the end, and the file system in it at the next boot
// (fstab says x-systemd.growfs). A disk that is not one of ours is left alone, and so is one that is prepared already. path is not
// in use by anybody; format is "raw" or "qcow2"; size is its virtual size.
func PrepareDisk(ctx context.Context, path, format string, size api.Bytes) error {
	var err error
	switch format {
	case "raw":
		err = growRaw(path, int64(size))
	case "qcow2":
		err = growQcow2(ctx, path, int64(size))
	default:
		return api.Errorf(api.Invalid, "prepare disk %s: format %q: want raw or qcow2", path, format)
	}
	if err != nil {
		return fmt.Errorf("prepare disk %s: %w", path, err)
	}
	return nil
}

// rootNumber is the root's place in our partition table.
const rootNumber = 3

// growRaw changes the partition table where it is.
func growRaw(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := growTable(f, size); err != nil {
		return err
	}
	return f.Close()
}

// growTable grows the root partition in the table of f. It says whether there was something to do.
func growTable(f *os.File, size int64) (bool, error) {
	table, err := gpt.Read(f, sectorSize, sectorSize)
	if err != nil {
		return false, nil // not ours: ours was written by us and is whole
	}
	root := rootPartition(table)
	end := uint64((size-alignment)/sectorSize - 1)
	if root == nil || root.End >= end {
		return false, nil
	}
	if err := table.Repair(uint64(size)); err != nil {
		return false, err
	}
	root.End, root.Size = end, (end-root.Start+1)*sectorSize
	return true, table.Write(unsynced{f}, size)
}

// rootPartition is the root's in a partition table of ours; nil: it is another's.
func rootPartition(table *gpt.Table) *gpt.Partition {
	for _, p := range table.Partitions {
		if p.Index == rootNumber && p.Name == rootLabel {
			return p
		}
	}
	return nil
}

// unsynced hides a file's Sync: the disk is new, and a host that goes down now makes it again.
type unsynced struct{ backend.WritableFile }

// tableSize is the part of a disk that has the partition table at its beginning; a copy, not larger, is at its end.
const tableSize = 34 * sectorSize

// growQcow2 does the same in a small sparse copy, and writes what changed into the qcow2 file.
func growQcow2(ctx context.Context, path string, size int64) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(path), ".table-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	copyPath := filepath.Join(work, "disk")
	_, err = command.Run(ctx, nil, "qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1", "if="+path, "of="+copyPath)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(copyPath, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	changed, err := growTable(f, size)
	if err != nil || !changed {
		return err
	}
	head, tail := filepath.Join(work, "head"), filepath.Join(work, "tail")
	if err := copyRange(f, 0, head); err != nil {
		return err
	}
	if err := copyRange(f, size-tableSize, tail); err != nil {
		return err
	}
	write := func(at int64, from string) string { return fmt.Sprintf("write -q -s %s %d %d", from, at, tableSize) }
	_, err = command.Run(ctx, nil, "qemu-io", "-f", "qcow2", "-c", write(size-tableSize, tail), "-c", write(0, head), path)
	return err
}

func copyRange(f io.ReaderAt, at int64, to string) error {
	content := make([]byte, tableSize)
	if _, err := f.ReadAt(content, at); err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o600)
}
