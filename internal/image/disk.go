package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"polder/api"
	"polder/internal/command"
)

// The layout of a disk that is derived from a tree: GPT with a partition for GRUB's core, an EFI system partition, and the
// root, which is last so that it can grow.
const (
	sectorSize = 512
	alignment  = int64(1 << 20)

	biosStart = alignment
	biosSize  = alignment
	espStart  = biosStart + biosSize
	espSize   = 64 << 20
	rootStart = espStart + espSize

	// rootLabel names the root's file system and partition: fstab and the kernel's command line find it by that.
	rootLabel = "polder-root"

	leastDisk = 4 << 30
	// diskSlack is the least room left in the root file system.
	diskSlack = 1 << 30
)

// diskSizeFor gives the virtual size of the disk of a tree with content bytes.
func diskSizeFor(content int64) int64 {
	// ext4's own tables, and files that are smaller than a block.
	size := rootStart + content + content/8 + diskSlack
	return max(leastDisk, (size+alignment-1)/alignment*alignment)
}

// deriveDisk makes at path a raw disk image that boots, under BIOS and UEFI, the system in tree. It needs neither mounts
// nor loop devices. content is the size of the tree's files. work is a directory for small temporary files.
func deriveDisk(ctx context.Context, tree, path, work string, content int64) error {
	kernel, err := findKernel(tree)
	if err != nil {
		return err
	}
	if kernel.Image == "" || kernel.Initrd == "" {
		return api.Errorf(api.Precondition, "make a bootable disk: the tree has no kernel with an initrd")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	size := diskSizeFor(content)
	err = f.Truncate(size)
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	rootSize := size - rootStart - alignment // the backup GPT is in the last megabyte
	if err := partition(ctx, path, rootSize); err != nil {
		return fmt.Errorf("partition: %w", err)
	}
	if err := makeRoot(ctx, tree, path, work, rootSize); err != nil {
		return fmt.Errorf("make the root file system: %w", err)
	}
	grub := grubFiles{work: work, config: kernel.grubConfig()}
	if err := grub.installEFI(ctx, path); err != nil {
		return fmt.Errorf("install grub for uefi: %w", err)
	}
	if err := grub.installBIOS(ctx, path); err != nil {
		return fmt.Errorf("install grub for bios: %w", err)
	}
	return nil
}

func partition(ctx context.Context, path string, rootSize int64) error {
	script := fmt.Sprintf(`label: gpt
start=%d, size=%d, type=21686148-6449-6E6F-744E-656564454649, name="bios"
start=%d, size=%d, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="efi"
start=%d, size=%d, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=%q
`, biosStart/sectorSize, biosSize/sectorSize, espStart/sectorSize, espSize/sectorSize, rootStart/sectorSize, rootSize/sectorSize, rootLabel)
	_, err := command.Run(ctx, strings.NewReader(script), "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path)
	return err
}

// makeRoot makes the root file system with the tree in it. Features that the older of the systems we build cannot check at
// boot are left off. The file is new and sparse, so that inode tables are zero already: the kernel need not write them in
// every virtual environment.
func makeRoot(ctx context.Context, tree, path, work string, size int64) error {
	_, err := command.Run(ctx, nil, "mke2fs", "-q", "-F", "-t", "ext4", "-L", rootLabel, "-m", "1", "-d", tree,
		"-O", "^orphan_file,^metadata_csum_seed",
		"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1,root_owner=0:0,offset="+strconv.FormatInt(rootStart, 10),
		path, strconv.FormatInt(size/1024, 10)+"k")
	if err != nil {
		return err
	}
	return mendFstab(ctx, tree, path, work)
}

// mendFstab gives the disk an fstab of ours when the tree has another: one from elsewhere names disks that are not there, and
// would stop the boot. The old one is kept beside it.
func mendFstab(ctx context.Context, tree, path, work string) error {
	ours, err := builtTree.ReadFile("tree/etc/fstab")
	if err != nil {
		return err
	}
	theirs, err := readInTree(tree, "etc/fstab")
	if err == nil && bytes.Equal(ours, theirs) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(work, "fstab"), ours, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "fstab.imported"), theirs, 0o600); err != nil {
		return err
	}
	script := "cd /etc\nrm fstab\nrm fstab.imported\nwrite fstab fstab\nwrite fstab.imported fstab.imported\n" +
		"sif fstab mode 0100644\nsif fstab.imported mode 0100644\n"
	_, err = command.Command{
		Name: "debugfs", Dir: work, Stdin: strings.NewReader(script),
		Args: []string{"-w", "-f", "-", path + "?offset=" + strconv.FormatInt(rootStart, 10)},
	}.Run(ctx)
	return err
}
