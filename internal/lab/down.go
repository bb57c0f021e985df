package lab

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// Down removes the lab and all that is its: processes, mounts, namespaces, links, rules, loop devices, cgroups and
// files, whatever state they are in. It is not an error when there is no lab. The cache stays.
func (l *Lab) Down(ctx context.Context) error {
	if err := checkRoot(); err != nil {
		return err
	}
	if !l.exists() {
		return nil
	}
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return l.remove(ctx)
}

// exists says whether there is anything of a lab: its directory, or processes of one whose directory was removed by hand.
func (l *Lab) exists() bool {
	if _, err := os.Stat(l.dir); err == nil {
		return true
	}
	cgroup, err := l.cgroup()
	if err != nil {
		return false
	}
	_, err = os.Stat(cgroup)
	return err == nil
}

// remove goes from what is alive to what is not, and does all it can. The lock goes last: it lies in the directory.
func (l *Lab) remove(ctx context.Context) error {
	numbers, err := l.hostNumbers()
	if err != nil {
		return err
	}
	var loops []loopDevice
	for _, n := range numbers {
		loops = append(loops, hostLoops(l.initPID(nameOf(n)))...)
	}
	r, readErr := l.readRecord()
	cgroup, err := l.cgroup()
	if err == nil {
		err = killCgroup(ctx, cgroup)
	}
	if err != nil && api.KindOf(err) != api.Unsupported { // without cgroup2 nothing was ever started
		return err
	}
	for _, d := range loops {
		d.detach()
	}
	detachOrphans()
	if readErr == nil && r != nil && !l.otherLabs() {
		for _, c := range r.Controllers {
			// Somebody may use it by now; then it stays.
			_ = os.WriteFile(filepath.Join(filepath.Dir(cgroup), "cgroup.subtree_control"), []byte("-"+c), 0)
		}
	}
	err = errors.Join(l.removeUplink(ctx), l.removeSwitch(), l.unmountAll(), l.waitPools(ctx, numbers...), l.removeUnfinished())
	if err != nil {
		return err
	}
	return l.removeFiles()
}

// unmountAll unmounts what is mounted below the lab's directory in this mount namespace. The lab itself only has its
// switch there.
func (l *Lab) unmountAll() error {
	targets, err := mountsBelow(l.dir)
	if err != nil {
		return api.Errorf(api.Internal, "find the lab's mounts: %w", err)
	}
	for _, t := range slices.Backward(targets) {
		if err := unix.Unmount(t, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return api.Errorf(api.Internal, "unmount %s: %w", t, err)
		}
	}
	return nil
}

func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			if target := unescape(fields[4]); strings.HasPrefix(target, dir+"/") {
				list = append(list, target)
			}
		}
	}
	return list, lines.Err()
}

func (l *Lab) removeFiles() error {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.Internal, "remove the lab: %w", err)
	}
	for _, e := range entries {
		if e.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(l.path(e.Name())); err != nil {
			return api.Errorf(api.Internal, "remove the lab: %w", err)
		}
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return api.Errorf(api.Internal, "remove the lab: %w", err)
	}
	return nil
}

// Purge removes what Down keeps: the cache that all labs on this machine share. It refuses while there is one.
func (l *Lab) Purge() error {
	if _, err := os.Stat(l.dir); err == nil || l.otherLabs() {
		return api.Errorf(api.Precondition, "remove the cache %s: there is still a lab that needs it", l.cache)
	}
	for _, d := range []string{"root", "images"} {
		if err := os.RemoveAll(filepath.Join(l.cache, d)); err != nil {
			return api.Errorf(api.Internal, "remove the cache: %w", err)
		}
	}
	if err := os.Remove(l.cache); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return api.Errorf(api.Internal, "remove the cache: %w", err)
	}
	return nil
}
