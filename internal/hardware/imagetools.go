package hardware

import (
	"context"
	"os"
	"runtime"
	"slices"
	"strings"

	"polder/api"
	"polder/internal/command"
)

// imageTools make disks of images, and read those that others made, beside those with a capability of their own.
var imageTools = []string{
	"debugfs", "fuse2fs", "grub-mkimage", "mcopy", "mke2fs", "mkfs.vfat", "prlimit", "qemu-io", "sfdisk", "sqfs2tar", "tar2sqfs", "xz",
}

// bootLoaders are the directories of GRUB for either firmware, and their packages.
var bootLoaders = map[string]string{
	"/usr/lib/grub/i386-pc":    "grub-pc-bin",
	"/usr/lib/grub/x86_64-efi": "grub-efi-amd64-bin",
}

func probeImageTools(context.Context) []api.Capability {
	var missing, packages []string
	add := func(what, pkg string) {
		missing = append(missing, what)
		if !slices.Contains(packages, pkg) {
			packages = append(packages, pkg)
		}
	}
	for _, name := range imageTools {
		if _, err := command.Find(name); err != nil {
			add(name, command.Package(name))
		}
	}
	if runtime.GOARCH == "amd64" {
		for dir, pkg := range bootLoaders {
			if _, err := os.Stat(dir); err != nil {
				add(dir, pkg)
			}
		}
	}
	if len(missing) == 0 {
		return []api.Capability{{Name: "image-tools", Level: api.OK, Detail: "disks of images can be made and read"}}
	}
	slices.Sort(missing)
	slices.Sort(packages)
	return []api.Capability{{
		Name: "image-tools", Level: api.Limited,
		Detail: "not all images can be built or imported without " + strings.Join(missing, ", "),
		Remedy: "apt-get install " + strings.Join(packages, " "),
	}}
}
