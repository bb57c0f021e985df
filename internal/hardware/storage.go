package hardware

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// existing is dir, or the nearest directory above that is there.
func existing(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return dir
		}
		dir = up
	}
}

var fileSystems = map[int64]string{
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	0x2fc12fc1:                 "zfs",
}

func fileSystemName(dir string) string {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return "unknown"
	}
	if name, ok := fileSystems[s.Type]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", s.Type)
}

// kernelHas says whether the kernel has a file system, loading its module as a mount would. Without root it knows only what is loaded.
func kernelHas(fs string) (has, sure bool) {
	fd, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	if err == nil {
		unix.Close(fd)
		return true, true
	}
	table, readErr := os.ReadFile("/proc/filesystems")
	if readErr == nil && strings.Contains("\n"+string(table), "\t"+fs+"\n") {
		return true, true
	}
	return moduleKnown(fs), errors.Is(err, unix.ENODEV)
}

// moduleKnown says whether a kernel module is loaded, built in, or could be loaded.
func moduleKnown(name string) bool {
	if _, err := os.Stat("/sys/module/" + name); err == nil {
		return true
	}
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		text, err := os.ReadFile(filepath.Join("/lib/modules", kernelRelease(), list))
		if err == nil && strings.Contains(string(text), "/"+name+".ko") {
			return true
		}
	}
	return false
}

func probeOverlay(context.Context) []api.Capability {
	return []api.Capability{fileSystemCapability("overlayfs", "overlay", "roots of containers in pools of the dir driver")}
}

func fileSystemCapability(name, fs, use string) api.Capability {
	c := api.Capability{Name: name, Level: api.OK, Detail: use}
	switch has, sure := kernelHas(fs); {
	case has:
	case sure:
		c.Level, c.Detail, c.Remedy = api.Missing, "the kernel has none: no "+use, "boot a kernel that has it (Debian's has), or: modprobe "+fs
	default:
		c.Level, c.Detail, c.Remedy = api.Limited, "cannot be tried without root", "sudo polder doctor"
	}
	return c
}

// simpleQuotas is the kernel that brought them to btrfs.
var simpleQuotas = version{6, 7, 0}

func probeBtrfs(dir string) []api.Capability {
	c := fileSystemCapability("btrfs", "btrfs", "pools with snapshots and limits")
	if kernel, ok := parseVersion(kernelRelease()); c.Level == api.OK && ok && kernel.less(simpleQuotas) {
		c.Level = api.Limited
		c.Detail = "pools with snapshots; limits of containers' disks are not kept: Linux " + kernel.String() + " has no simple quotas"
		c.Remedy = "boot Linux 6.7 or newer (Debian 13's, or apt-get install -t bookworm-backports linux-image-amd64)"
	}
	if c.Level == api.OK && fileSystemName(dir) != "btrfs" {
		c.Detail += fmt.Sprintf("; %s is on %s", dir, fileSystemName(dir))
	}
	return []api.Capability{c}
}

func probeReflink(dir string) []api.Capability {
	c := api.Capability{Name: "reflink", Level: api.OK, Detail: fmt.Sprintf("files on %s (%s) can share extents", dir, fileSystemName(dir))}
	switch err := reflink(dir); {
	case err == nil:
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		c.Level, c.Detail, c.Remedy = api.Limited, "cannot be tried on "+dir+" without root", "sudo polder doctor"
	default:
		c.Level = api.Limited
		c.Detail = fmt.Sprintf("not on %s (%s): disks of VMs are qcow2 layers in pools of the dir driver", dir, fileSystemName(dir))
		c.Remedy = "keep Polder's data, or a pool, on btrfs or xfs: polder serve --data DIR"
	}
	return []api.Capability{c}
}

// reflink makes two files without names share an extent.
func reflink(dir string) error {
	var fds [2]int
	for i := range fds {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	if _, err := unix.Write(fds[0], make([]byte, 4096)); err != nil {
		return err
	}
	return unix.IoctlFileClone(fds[1], fds[0])
}
