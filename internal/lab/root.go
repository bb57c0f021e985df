package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"polder/api"
	"polder/internal/command"
)

// rootFormat goes up when the way a root is made changes.
const rootFormat = 2

const (
	rootSuite = "trixie"
	// newerSuite has what rootSuite has not, or too old: newerPackages and nothing else is taken from it.
	newerSuite = "forky"
)

// unfinished marks a root that is being built, or was when its builder was killed.
const unfinished = ".new"

// rootPackages are in every host's root: what `polder serve` runs, what its tests need, and what people expect.
var rootPackages = []string{
	"attr", "acl", "bash-completion", "btrfs-progs", "busybox-static", "ca-certificates", "crun", "criu", "curl",
	"debian-archive-keyring", "dnsmasq-base", "dosfstools", "e2fsprogs", "fdisk", "fuse2fs", "gpg", "gpgv", "grub-common",
	"grub-efi-amd64-bin", "grub-pc-bin", "iperf3", "iproute2", "iptables", "iputils-ping", "kmod", "less", "mmdebstrap", "mtools", "nftables",
	"openssh-client", "ovmf", "procps", "psmisc", "qemu-system-x86", "qemu-utils", "seabios", "squashfs-tools",
	"squashfs-tools-ng", "systemd", "tcpdump", "udev", "uidmap", "util-linux", "wireguard-tools", "xz-utils", "zstd",
}

// newerPackages are criu and what it needs newer than rootSuite has it. Debian 13 is without criu, and the kernel that lab
// hosts run on is the machine's: from 6.16 on it takes criu 4.2.
var newerPackages = []string{"criu", "libcompel1", "libnet9", "libnl-3-200", "libnl-route-3-200"}

// rootKey names the root that rootPackages make.
func rootKey() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %s %s %s", rootFormat, rootSuite, strings.Join(rootPackages, " "), newerSuite, strings.Join(newerPackages, " ")))
	return hex.EncodeToString(sum[:6])
}

// makeRoot gives the directory that every host's root is a copy-on-write child of; it builds it when the cache has none.
// Labs that need it at the same time wait for the one that builds it.
func (l *Lab) makeRoot(ctx context.Context, report Report) (string, error) {
	if l.root != "" {
		return l.root, nil
	}
	dir := filepath.Join(l.cache, "root", rootKey())
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unlock, err := lockRoots(ctx, l.cache, report)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	start := time.Now()
	report("root: building Debian 13 for the hosts in %s, once", dir)
	if err := l.buildRoot(ctx, dir, report); err != nil {
		return "", fmt.Errorf("build the root of lab hosts: %w", err)
	}
	report("root: built in %s", seconds(start))
	return dir, nil
}

// lockRoots waits until nobody else builds a root.
func lockRoots(ctx context.Context, cache string, report Report) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Join(cache, "root"), 0o755); err != nil {
		return nil, api.Errorf(api.Internal, "lock the cache of roots: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(cache, "root", lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, api.Errorf(api.Internal, "lock the cache of roots: %w", err)
	}
	for waiting := false; ; waiting = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, api.Errorf(api.Internal, "lock the cache of roots: %w", err)
		}
		if !waiting {
			report("root: another lab is building it: waiting")
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, api.Errorf(api.Cancelled, "wait for another lab to build the root: %w", ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// removeUnfinished removes what a killed build left in the cache, unless a build is under way.
func (l *Lab) removeUnfinished() error {
	f, err := os.OpenFile(filepath.Join(l.cache, "root", lockFile), os.O_RDWR, 0)
	if err != nil {
		return nil // nothing was ever built here
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return nil
	}
	left, _ := filepath.Glob(filepath.Join(l.cache, "root", "*"+unfinished))
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return api.Errorf(api.Internal, "remove the unfinished root: %w", err)
		}
	}
	return nil
}

// buildRoot makes dir, whole or not at all.
func (l *Lab) buildRoot(ctx context.Context, dir string, report Report) error {
	tmp := dir + unfinished
	if err := os.RemoveAll(tmp); err != nil {
		return api.Errorf(api.Internal, "%w", err)
	}
	mirror := debianSource(machineSources())
	args := []string{
		// With its own pid and mount namespace it leaves nothing behind, also when this process is killed.
		"--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
		"mmdebstrap", "--mode=root", "--variant=minbase", "--include=" + strings.Join(rootPackages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--setup-hook=" + newerSource(mirror),
		rootSuite, tmp,
		"deb " + mirror + " " + rootSuite + " main",
		"deb " + mirror + " " + rootSuite + "-updates main",
		"deb " + debianMirrors[1] + " " + rootSuite + "-security main",
	}
	for _, tool := range []string{"mmdebstrap", "unshare"} {
		if _, err := command.Find(tool); err != nil {
			return err
		}
	}
	// The death signal is sent when the thread ends that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	build, err := l.tool(command.Command{Name: "setpriv", Args: args, Stderr: &infoLines{report: report}})
	if err == nil {
		_, err = build.Run(ctx)
	}
	if err == nil {
		err = finishRoot(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		_ = os.RemoveAll(tmp)
	}
	if ctx.Err() != nil {
		return api.Errorf(api.Cancelled, "cancelled; the next lab up starts over: %w", ctx.Err())
	}
	return err
}

// The files of a root that name newerSuite to apt; they go when it is built.
const (
	newerList = "etc/apt/sources.list.d/" + newerSuite + ".list"
	newerPins = "etc/apt/preferences.d/" + newerSuite
)

// newerSource is the shell command that lets apt take newerPackages from newerSuite. Its release file is used also when
// a mirror that lags behind has one past its date.
func newerSource(mirror string) string {
	source := fmt.Sprintf(`deb [check-valid-until=no] %s %s main\n`, mirror, newerSuite)
	pins := fmt.Sprintf(`Package: *\nPin: release n=%[1]s\nPin-Priority: -1\n\nPackage: %[2]s\nPin: release n=%[1]s\nPin-Priority: 990\n`,
		newerSuite, strings.Join(newerPackages, " "))
	return fmt.Sprintf(`printf '%s' >"$1/%s" && printf '%s' >"$1/%s"`, source, newerList, pins, newerPins)
}

// finishRoot removes what must differ between hosts, and writes it all to disk before the rename makes it the root.
func finishRoot(dir string) error {
	for _, f := range []string{"etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id", newerList, newerPins} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	syscall.Sync()
	return nil
}

// infoLines reports the lines that mmdebstrap starts with "I: ".
type infoLines struct {
	report Report
	rest   string
}

func (w *infoLines) Write(p []byte) (int, error) {
	w.rest += string(p)
	for {
		line, rest, ok := strings.Cut(w.rest, "\n")
		if !ok {
			return len(p), nil
		}
		w.rest = rest
		if text, ok := strings.CutPrefix(line, "I: "); ok {
			w.report("root: %s", strings.TrimSpace(text))
		}
	}
}

func seconds(since time.Time) string {
	return fmt.Sprintf("%.1f s", time.Since(since).Seconds())
}
