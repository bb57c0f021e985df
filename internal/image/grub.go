package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"polder/api"
	"polder/internal/command"
)

// grubDir has a directory for each platform that GRUB's packages bring.
const grubDir = "/usr/lib/grub"

// modules that are built into GRUB's core, as nothing is read from the root but the kernel, the initrd and grub.cfg. The second
// half is for a grub.cfg that the system inside may come to write itself.
var grubModules = []string{
	"memdisk", "tar", "part_gpt", "ext2", "normal", "configfile", "linux", "test", "echo", "regexp", "serial", "terminal", "minicmd",
	"search", "search_label", "search_fs_uuid", "search_fs_file", "gzio", "part_msdos", "fat", "loadenv", "true", "boot", "ls", "cat", "reboot", "halt",
}

// grubFiles makes and installs GRUB.
type grubFiles struct {
	work   string // for temporary files
	config string // of the core
}

// image runs grub-mkimage. The prefix names the partition only: GRUB fills in the disk that it was started from, so that
// another disk with the same label is not mistaken for it.
func (g grubFiles) image(ctx context.Context, platform, output string, modules ...string) error {
	if _, err := os.Stat(filepath.Join(grubDir, platform, "kernel.img")); err != nil {
		packages := map[string]string{"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"}
		return api.Errorf(api.Unsupported, "grub for %s is not on this host: apt-get install %s", platform, packages[platform])
	}
	memdisk := filepath.Join(g.work, "memdisk.tar")
	if err := os.WriteFile(memdisk, grubMemdisk(g.config), 0o600); err != nil {
		return err
	}
	// What is embedded as configuration is read by a parser without conditions: all it does is to start the real one.
	config := filepath.Join(g.work, "core.cfg")
	if err := os.WriteFile(config, []byte("serial --unit=0 --speed=115200\nterminal_output console serial\nterminal_input console serial\nconfigfile (memdisk)/grub.cfg\n"), 0o600); err != nil {
		return err
	}
	// -m sets a prefix too: the last one counts.
	args := []string{"-O", platform, "-o", output, "-m", memdisk, "-p", "(,gpt3)/boot/grub", "-c", config}
	_, err := command.Run(ctx, nil, "grub-mkimage", append(append(args, grubModules...), modules...)...)
	return err
}

// grubMemdisk is a file system for GRUB's memory with grub.cfg in it.
func grubMemdisk(config string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// Writes to memory do not fail, and the header is valid.
	_ = w.WriteHeader(&tar.Header{Name: "grub.cfg", Mode: 0o644, Size: int64(len(config)), Format: tar.FormatUSTAR})
	_, _ = w.Write([]byte(config))
	_ = w.Close()
	return b.Bytes()
}

// installEFI makes the EFI system partition with GRUB as what the firmware starts from any disk.
func (g grubFiles) installEFI(ctx context.Context, disk string) error {
	core := filepath.Join(g.work, "BOOTX64.EFI")
	if err := g.image(ctx, "x86_64-efi", core, "efi_gop", "efifwsetup"); err != nil {
		return err
	}
	_, err := command.Run(ctx, nil, "mkfs.vfat", "-F", "32", "-s", "1", "-n", "EFI", "--offset", strconv.FormatInt(espStart/sectorSize, 10),
		disk, strconv.FormatInt(espSize/1024, 10))
	if err != nil {
		return err
	}
	image := fmt.Sprintf("%s@@%d", disk, espStart)
	if _, err := command.Run(ctx, nil, "mmd", "-i", image, "::/EFI", "::/EFI/BOOT"); err != nil {
		return err
	}
	_, err = command.Run(ctx, nil, "mcopy", "-i", image, core, "::/EFI/BOOT/BOOTX64.EFI")
	return err
}

// Offsets in GRUB's first two sectors, as grub-bios-setup patches them (include/grub/i386/pc/boot.h in GRUB's source).
const (
	bootCodeEnd      = 0x1b8 // the disk's signature and partition table follow
	bootKernelSector = 0x5c  // boot.img: where the core starts, 64 bits
	bootDriveCheck   = 0x66  // boot.img: a jump; without it GRUB mistrusts drive numbers that buggy firmware passes
	coreBlockList    = 0x1f4 // core.img's first sector: start (64 bits), length (16), segment (16) of the rest
	coreSegment      = 0x820
)

// installBIOS writes GRUB's first sector into the disk's first, around the partition table, and its core into the BIOS boot
// partition.
func (g grubFiles) installBIOS(ctx context.Context, disk string) error {
	path := filepath.Join(g.work, "core.img")
	if err := g.image(ctx, "i386-pc", path, "biosdisk"); err != nil {
		return err
	}
	boot, err := os.ReadFile(filepath.Join(grubDir, "i386-pc", "boot.img"))
	if err != nil {
		return err
	}
	core, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	mbr := make([]byte, sectorSize)
	if _, err := f.ReadAt(mbr, 0); err != nil {
		return err
	}
	if err := embedGrub(boot, core, mbr, biosStart/sectorSize, biosSize); err != nil {
		return err
	}
	if _, err := f.WriteAt(core, biosStart); err != nil {
		return err
	}
	if _, err := f.WriteAt(mbr, 0); err != nil {
		return err
	}
	return f.Close()
}

// embedGrub links boot.img to a core.img that will be at sector: boot.img's code goes into mbr, the block list into core.
func embedGrub(boot, core, mbr []byte, sector, room int64) error {
	switch {
	case len(boot) != sectorSize || len(mbr) != sectorSize:
		return fmt.Errorf("boot.img has %d bytes, want %d", len(boot), sectorSize)
	case len(core) < 2*sectorSize || int64(len(core)) > room:
		return fmt.Errorf("core.img has %d bytes, want at most %d", len(core), room)
	}
	rest := (len(core) - 1) / sectorSize // sectors after the first, the last one rounded up
	copy(mbr[:bootCodeEnd], boot)
	binary.LittleEndian.PutUint64(mbr[bootKernelSector:], uint64(sector))
	mbr[bootDriveCheck], mbr[bootDriveCheck+1] = 0x90, 0x90
	binary.LittleEndian.PutUint64(core[coreBlockList:], uint64(sector+1))
	binary.LittleEndian.PutUint16(core[coreBlockList+8:], uint16(rest))
	binary.LittleEndian.PutUint16(core[coreBlockList+10:], coreSegment)
	return nil
}

// kernel is what a tree boots: paths from its root, empty when there is none.
type kernel struct {
	Version       string
	Image, Initrd string
}

// kernelArgs are for both consoles; the serial one is the one that is logged. GPT discovery would probe for what fstab says.
const kernelArgs = "root=LABEL=" + rootLabel + " rw quiet console=tty0 console=ttyS0,115200n8 systemd.gpt_auto=0"

// grubConfig is the configuration of GRUB's core: it boots what the distribution's symlinks name (they are kept at the newest kernel
// when one is installed inside), and the kernel that was found when the disk was made where there are none. The system
// inside can take over with a /boot/grub/polder.cfg.
func (k kernel) grubConfig() string {
	var b strings.Builder
	fmt.Fprintf(&b, "if [ -f /boot/grub/polder.cfg ]; then configfile /boot/grub/polder.cfg; fi\n")
	fmt.Fprintf(&b, "if [ -f /vmlinuz -a -f /initrd.img ]; then set linux=/vmlinuz; set initrd=/initrd.img\n")
	fmt.Fprintf(&b, "elif [ -f /boot/vmlinuz -a -f /boot/initrd.img ]; then set linux=/boot/vmlinuz; set initrd=/boot/initrd.img\n")
	fmt.Fprintf(&b, "else set linux=%s; set initrd=%s; fi\n", grubQuote(k.Image), grubQuote(k.Initrd))
	fmt.Fprintf(&b, "linux $linux %s\ninitrd $initrd\nboot\n", kernelArgs)
	return b.String()
}

// grubQuote is for paths that findKernel gives: it lets no quotes through.
func grubQuote(path string) string { return "'" + path + "'" }
