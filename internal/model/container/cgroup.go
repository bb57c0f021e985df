package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// cgroupMount is where the kernel's unified hierarchy is on every host that crun can run a systemd on.
const cgroupMount = "/sys/fs/cgroup"

// limits says which limits this host can keep.
type limits struct{ memory, cpu, pids bool }

// cgroup is a VE's own control group.
type cgroup string

func cgroupOf(ve model.Spec) cgroup { return cgroup(filepath.Join(cgroupMount, ve.Cgroup)) }

// unified is an error on a host whose /sys/fs/cgroup is not cgroup v2.
func unified() error {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &st); err != nil {
		return api.Errorf(api.Unsupported, "%s: %w", cgroupMount, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return api.Errorf(api.Unsupported, "%s is not cgroup v2: boot the host with systemd.unified_cgroup_hierarchy=1", cgroupMount)
	}
	return nil
}

// delegate makes the groups above the VE's and hands the controllers down to them, as far as the host has them, and says
// which have arrived.
func (c cgroup) delegate() (limits, error) {
	parent := filepath.Dir(string(c))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return limits{}, fmt.Errorf("make cgroup: %w", err)
	}
	arrived := func(controller string) bool { return handDown(cgroupMount, parent, controller) == nil }
	return limits{memory: arrived("memory"), cpu: arrived("cpu"), pids: arrived("pids")}, nil
}

// handDown makes a controller available to the children of dir, which is root or below it, or says why that cannot be.
func handDown(root, dir, controller string) error {
	enabled, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(string(enabled)), controller) {
		return nil
	}
	if dir != root {
		if err := handDown(root, filepath.Dir(dir), controller); err != nil {
			return err
		}
	} else if has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err != nil {
		return err
	} else if !slices.Contains(strings.Fields(string(has)), controller) {
		return fmt.Errorf("the host's cgroup v2 has no %s controller", controller)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
		return fmt.Errorf("the %s controller cannot be handed down: %w", controller, err)
	}
	return nil
}

// set writes a control file; a group that is not there is fs.ErrNotExist.
func (c cgroup) set(file, value string) error {
	f, err := os.OpenFile(filepath.Join(string(c), file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// frozen says whether the group has been told to freeze.
func (c cgroup) frozen() bool {
	content, err := os.ReadFile(filepath.Join(string(c), "cgroup.freeze"))
	return err == nil && strings.TrimSpace(string(content)) == "1"
}

// freeze stops or lets go all processes of the group and of those below, and waits until it is so.
func (c cgroup) freeze(ctx context.Context, on bool) error {
	value := map[bool]string{true: "1", false: "0"}[on]
	if err := c.set("cgroup.freeze", value); err != nil {
		return err
	}
	return c.await(ctx, "frozen "+value)
}

// await blocks until cgroup.events has the line.
func (c cgroup) await(ctx context.Context, line string) error {
	f, err := os.Open(filepath.Join(string(c), "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) && line == "populated 0" {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	buffer := make([]byte, 256)
	for {
		n, err := f.ReadAt(buffer, 0)
		if n == 0 && errors.Is(err, unix.ENODEV) && line == "populated 0" {
			return nil // removed meanwhile
		} else if n == 0 {
			return fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if slices.Contains(strings.Split(string(buffer[:n]), "\n"), line) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for %q in %s: %w", line, f.Name(), err)
		}
		// The kernel says POLLPRI on a change; the time-out is for ctx.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, 20) // milliseconds
	}
}

// destroy kills whatever is in the group and below, frozen or not, and removes the groups. One that is not there is no
// error.
func (c cgroup) destroy(ctx context.Context) error {
	if err := c.set("cgroup.kill", "1"); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	if err := c.await(ctx, "populated 0"); err != nil {
		return err
	}
	return c.remove()
}

// remove removes the group and those below; they must be empty.
func (c cgroup) remove() error {
	var groups []string
	err := filepath.WalkDir(string(c), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			groups = append(groups, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, group := range slices.Backward(groups) {
		if err := unix.Rmdir(group); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup %s: %w", group, err)
		}
	}
	return nil
}
