package command

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"

	"polder/api"
)

// Error is a tool that failed. errors.Is(err, syscall.ENOSPC) and syscall.EDQUOT hold when the tool said so.
type Error struct {
	Argv     []string
	ExitCode int    // -1 when a signal ended it, or it could not be started
	Stderr   string // the last 2 KiB, trimmed
	Err      error  // of os/exec
}

func (e *Error) Error() string {
	text := strings.Join(e.Argv, " ") + ": " + e.Err.Error()
	if e.Stderr != "" {
		text += ": " + e.Stderr
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// Is finds the errors that a tool can only report as text.
func (e *Error) Is(target error) bool {
	switch target {
	case syscall.ENOSPC:
		return strings.Contains(e.Stderr, "No space left on device")
	case syscall.EDQUOT:
		return strings.Contains(e.Stderr, "Disk quota exceeded")
	}
	return false
}

func failure(ctx context.Context, argv []string, stderr string, err error) error {
	e := &Error{Argv: argv, ExitCode: -1, Stderr: stderr, Err: err}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		e.ExitCode = exit.ExitCode()
	}
	switch ctx.Err() {
	case context.Canceled:
		return api.Errorf(api.Cancelled, "cancelled: %w", e)
	case context.DeadlineExceeded:
		return api.Errorf(api.Unavailable, "took too long: %w", e)
	}
	if e.Is(syscall.ENOSPC) || e.Is(syscall.EDQUOT) {
		return api.Errorf(api.Exhausted, "%w", e)
	}
	return e
}

// packages is the Debian package of each tool that Polder runs and whose package has another name.
var packages = map[string]string{
	"bridge":              "iproute2",
	"btrfs":               "btrfs-progs",
	"debugfs":             "e2fsprogs",
	"dnsmasq":             "dnsmasq-base",
	"dumpe2fs":            "e2fsprogs",
	"e2fsck":              "e2fsprogs",
	"grub-mkimage":        "grub-common",
	"ip":                  "iproute2",
	"ip6tables":           "iptables",
	"ip6tables-restore":   "iptables",
	"iptables-restore":    "iptables",
	"losetup":             "mount",
	"mcopy":               "mtools",
	"mformat":             "mtools",
	"mke2fs":              "e2fsprogs",
	"mkfs.btrfs":          "btrfs-progs",
	"mkfs.ext4":           "e2fsprogs",
	"mkfs.vfat":           "dosfstools",
	"mkfs.xfs":            "xfsprogs",
	"mksquashfs":          "squashfs-tools",
	"mmd":                 "mtools",
	"modprobe":            "kmod",
	"nft":                 "nftables",
	"nsenter":             "util-linux",
	"prlimit":             "util-linux",
	"qemu-img":            "qemu-utils",
	"qemu-io":             "qemu-utils",
	"qemu-nbd":            "qemu-utils",
	"qemu-system-aarch64": "qemu-system-arm",
	"qemu-system-x86_64":  "qemu-system-x86",
	"resize2fs":           "e2fsprogs",
	"setpriv":             "util-linux",
	"sfdisk":              "fdisk",
	"sqfs2tar":            "squashfs-tools-ng",
	"tar2sqfs":            "squashfs-tools-ng",
	"tune2fs":             "e2fsprogs",
	"umount":              "mount",
	"unshare":             "util-linux",
	"xz":                  "xz-utils",
	"unsquashfs":          "squashfs-tools",
}

// Package is the Debian package that has the tool.
func Package(tool string) string {
	if p, ok := packages[tool]; ok {
		return p
	}
	return tool
}

// Find gives the path of a tool: as the shell would find it, and in the sbin directories, which an ordinary user's PATH
// lacks. A tool that is not there is api.Unsupported.
func Find(tool string) (string, error) {
	path, err := exec.LookPath(tool)
	if err == nil {
		return path, nil
	}
	if !strings.Contains(tool, "/") {
		for _, dir := range []string{"/usr/local/sbin/", "/usr/sbin/", "/sbin/"} {
			if path, err := exec.LookPath(dir + tool); err == nil {
				return path, nil
			}
		}
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, syscall.ENOENT) {
		return "", api.Errorf(api.Unsupported, "run %s: not installed: apt-get install %s", tool, Package(tool))
	}
	return "", fmt.Errorf("run %s: %w", tool, err)
}
