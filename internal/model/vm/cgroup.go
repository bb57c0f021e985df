package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"polder/api"
	"polder/internal/model"
)

// Limits around QEMU itself, beyond the VE's memory: its own heap and buffers, and TCG's code.
const (
	qemuOverhead = 512 * api.MiB
	qemuThreads  = 1024
)

// cgroupMount finds where the cgroup2 hierarchy is mounted.
var cgroupMount = sync.OnceValues(func() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		mount, fs, ok := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if ok && strings.HasPrefix(fs, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", api.Errorf(api.Unsupported, "no cgroup2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
})

func cgroupDir(ve model.Spec) (string, error) {
	mount, err := cgroupMount()
	return filepath.Join(mount, ve.Cgroup), err
}

// makeCgroup makes the VE's cgroup, limits it where the host has the controllers, and opens it.
func makeCgroup(ve model.Spec) (*os.File, error) {
	dir, err := cgroupDir(ve)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cgroup of vm %q: %w", ve.Name, err)
	}
	mount, _ := cgroupMount()
	for _, controller := range []string{"memory", "pids", "cpu", "io"} {
		// From the top down; a host without the controller, or with processes in an inner cgroup, does without.
		up := mount
		for _, part := range strings.Split(strings.Trim(ve.Cgroup, "/"), "/") {
			_ = os.WriteFile(up+"/cgroup.subtree_control", []byte("+"+controller), 0)
			up = filepath.Join(up, part)
		}
	}
	for name, value := range map[string]string{
		"memory.max": strconv.FormatInt(int64(mostMemory(ve)), 10),
		"pids.max":   strconv.Itoa(qemuThreads),
		"cpu.weight": strconv.Itoa(usualWeight(ve)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("limit cgroup of vm %q: %w", ve.Name, err)
		}
	}
	return os.Open(dir)
}

// mostMemory is what a VE's QEMU may take.
func mostMemory(ve model.Spec) api.Bytes { return ve.Memory + qemuOverhead + tbSize*api.MiB }

// allowForks gives a VE that is forked room for its memory twice: what its forks share with it stays on its account, beside what it writes
// from then on. A host without the controller has no limit.
func allowForks(ve model.Spec) error {
	dir, err := cgroupDir(ve)
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(dir, "memory.max"), []byte(strconv.FormatInt(int64(mostMemory(ve)+ve.Memory), 10)), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("limit cgroup of vm %q: %w", ve.Name, err)
	}
	return nil
}

// usualWeight is the VE's share of the processor, as that of cgroups goes.
func usualWeight(ve model.Spec) int { return min(100*ve.CPUs, 10000) }

// removeCgroup removes the VE's cgroup, and kills what is in it: no QEMU runs as far as its pidfile tells, so it is one that
// was just being started when the daemon was killed. It is busy for a moment after its last process has ended.
func removeCgroup(ctx context.Context, ve model.Spec) error {
	dir, err := cgroupDir(ve)
	if err != nil || ve.Cgroup == "" {
		return err
	}
	if err := os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("kill cgroup of vm %q: %w", ve.Name, err)
	}
	for wait := time.Millisecond; ; wait *= 2 {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) || wait > time.Second {
			return fmt.Errorf("remove cgroup of vm %q: %w", ve.Name, err)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// outOfMemory says whether the kernel killed something in the VE's cgroup for its memory limit.
func outOfMemory(ve model.Spec) bool {
	dir, err := cgroupDir(ve)
	if err != nil {
		return false
	}
	events, err := os.ReadFile(dir + "/memory.events")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(events)) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(count) != "0"
		}
	}
	return false
}

// pause waits, or fails with ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
