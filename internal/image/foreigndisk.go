package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"io"
	"os"

	"polder/api"
	"polder/internal/command"
)

// maxForeignDisk is the largest virtual size of a disk that is imported.
const maxForeignDisk = 16 << 40

// checkDisk refuses a disk image file that is damaged, or that would have QEMU read other files, before a tool opens it. It
// gives the virtual size.
func checkDisk(ctx context.Context, path string, format api.ImageFormat) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if format == api.FormatRaw {
		return info.Size(), checkPartitions(f, info.Size())
	}
	size, err := checkQcow2(f)
	if err != nil {
		return 0, err
	}
	return size, checkQcow2Clusters(ctx, path, size)
}

// qcow2 header fields (docs/interop/qcow2.rst in QEMU's source): offsets and bits.
const (
	qcow2DataFile  = 1 << 2 // incompatible feature
	qcow2Corrupt   = 1 << 1
	qcow2HeaderLen = 104
)

// checkQcow2 reads the header.
func checkQcow2(r io.Reader) (int64, error) {
	head := make([]byte, qcow2HeaderLen)
	if n, err := io.ReadFull(r, head); err != nil && n < 72 {
		return 0, api.Errorf(api.Invalid, "the qcow2 file is truncated")
	}
	version := binary.BigEndian.Uint32(head[4:])
	size := binary.BigEndian.Uint64(head[24:])
	var incompatible uint64
	if version >= 3 {
		incompatible = binary.BigEndian.Uint64(head[72:])
	}
	switch {
	case string(head[:4]) != "QFI\xfb" || version < 2 || version > 3:
		return 0, api.Errorf(api.Invalid, "not a qcow2 file of version 2 or 3")
	case binary.BigEndian.Uint64(head[8:]) != 0 || binary.BigEndian.Uint32(head[16:]) != 0:
		return 0, api.Errorf(api.Invalid, "the qcow2 file has a backing file: make it complete first: qemu-img convert -O qcow2 FILE NEW")
	case incompatible&qcow2DataFile != 0:
		return 0, api.Errorf(api.Invalid, "the qcow2 file keeps its data in another file: make it complete first: qemu-img convert -O qcow2 FILE NEW")
	case binary.BigEndian.Uint32(head[32:]) != 0:
		return 0, api.Errorf(api.Unsupported, "the qcow2 file is encrypted: decrypt it first with qemu-img convert")
	case incompatible&qcow2Corrupt != 0:
		return 0, api.Errorf(api.Invalid, "the qcow2 file is marked as corrupt: try qemu-img check -r all")
	case size == 0 || size > maxForeignDisk:
		return 0, api.Errorf(api.Invalid, "the qcow2 file has a virtual size of %d bytes: want at most %s", size, api.Bytes(maxForeignDisk))
	}
	return int64(size), nil
}

// qemuImg runs qemu-img on a file from outside, under limits.
func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	if _, err := command.Find("qemu-img"); err != nil {
		return nil, err
	}
	limits := []string{"--as=" + toolMemory, "--nofile=64", "--core=0", "qemu-img"}
	return command.Run(ctx, nil, "prlimit", append(limits, args...)...)
}

// checkQcow2Clusters has qemu-img look at the tables, and refuses what it takes for damaged.
func checkQcow2Clusters(ctx context.Context, path string, size int64) error {
	out, err := qemuImg(ctx, "info", "-f", "qcow2", "--output=json", path)
	if err != nil {
		return api.Errorf(api.Invalid, "the qcow2 file is damaged: %w", err)
	}
	var info struct {
		VirtualSize int64  `json:"virtual-size"`
		Backing     string `json:"full-backing-filename"`
		Encrypted   bool   `json:"encrypted"`
		Specific    struct {
			Data struct {
				DataFile string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return api.Errorf(api.Internal, "read qemu-img's answer: %w", err)
	}
	if info.Backing != "" || info.Encrypted || info.Specific.Data.DataFile != "" || info.VirtualSize != size {
		return api.Errorf(api.Invalid, "the qcow2 file is not complete in itself")
	}
	out, err = qemuImg(ctx, "check", "-f", "qcow2", "--output=json", path)
	var check struct {
		Corruptions int64 `json:"corruptions"`
		Errors      int64 `json:"check-errors"`
	}
	if jsonErr := json.Unmarshal(out, &check); jsonErr != nil {
		return api.Errorf(api.Invalid, "the qcow2 file is damaged: %w", err)
	}
	if check.Corruptions > 0 || check.Errors > 0 { // leaks cost room only
		return api.Errorf(api.Invalid, "the qcow2 file is damaged: qemu-img check finds %d corruptions and %d errors", check.Corruptions, check.Errors)
	}
	return nil
}

// checkPartitions finds a raw disk that was cut off: its partition table says how long it was.
func checkPartitions(r io.ReaderAt, size int64) error {
	head := make([]byte, 2*sectorSize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return api.Errorf(api.Invalid, "the disk is truncated")
	}
	gpt := head[sectorSize:]
	if bytes.HasPrefix(gpt, []byte("EFI PART")) {
		length := binary.LittleEndian.Uint32(gpt[12:])
		if length < 92 || length > sectorSize {
			return api.Errorf(api.Invalid, "the disk's partition table is damaged")
		}
		sum := binary.LittleEndian.Uint32(gpt[16:])
		header := bytes.Clone(gpt[:length])
		clear(header[16:20])
		if crc32.ChecksumIEEE(header) != sum {
			return api.Errorf(api.Invalid, "the disk's partition table is damaged: its checksum is wrong")
		}
		if last := binary.LittleEndian.Uint64(gpt[32:]); last >= uint64(size)/sectorSize {
			return api.Errorf(api.Invalid, "the disk is truncated: it has %d sectors of %d", size/sectorSize, last+1)
		}
		return nil
	}
	if head[510] != 0x55 || head[511] != 0xaa {
		return api.Errorf(api.Invalid, "the disk has no partition table to boot from")
	}
	for at := 0x1be; at < 0x1fe; at += 16 {
		start, count := binary.LittleEndian.Uint32(head[at+8:]), binary.LittleEndian.Uint32(head[at+12:])
		if end := int64(start) + int64(count); head[at+4] != 0 && end > size/sectorSize {
			return api.Errorf(api.Invalid, "the disk is truncated: a partition ends at sector %d of %d", end, size/sectorSize)
		}
	}
	return nil
}

// convertDisk makes a sparse raw copy. The format is given, never guessed from the content.
func convertDisk(ctx context.Context, from string, format api.ImageFormat, to string) error {
	_, err := qemuImg(ctx, "convert", "-f", string(format), "-O", "raw", "-S", "4k", "-t", "writeback", from, to)
	return err
}
