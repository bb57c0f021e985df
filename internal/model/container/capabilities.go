package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// Capabilities says whether containers run here, which limits are kept, and what else differs from host to host. It
// changes nothing on the host.
func (m *Model) Capabilities(ctx context.Context) []api.Capability {
	all := []api.Capability{m.engine(ctx), userNamespaces()}
	for _, limit := range []struct{ name, controller, what string }{
		{"container-memory-limit", "memory", "memory"},
		{"container-cpu-limit", "cpu", "CPU time"},
		{"container-task-limit", "pids", "number of tasks"},
	} {
		all = append(all, limitCapability(limit.name, limit.controller, limit.what))
	}
	return append(all, exitStatus())
}

func (m *Model) engine(ctx context.Context) api.Capability {
	c := api.Capability{Name: "container", Level: api.Missing}
	version, err := m.runtime.Version(ctx)
	if err != nil {
		c.Detail, c.Remedy = err.Error(), "apt-get install crun"
		return c
	}
	if err := unified(); err != nil {
		c.Detail, c.Remedy = err.Error(), "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line"
		return c
	}
	c.Level, c.Detail = api.OK, "crun "+version+", no monitor process, seccomp keeps containers movable"
	return c
}

func userNamespaces() api.Capability {
	c := api.Capability{Name: "user-namespaces", Level: api.OK, Detail: "every container has an id range of its own; the volume's ids are mapped by its mount"}
	// As setting up a container does, but for one id and without anything in it.
	ids, err := userNamespace(1, 1)
	if err != nil {
		c.Level, c.Detail, c.Remedy = api.Missing, err.Error(), "sysctl user.max_user_namespaces=65536"
		return c
	}
	_ = ids.Close()
	return c
}

func limitCapability(name, controller, what string) api.Capability {
	c := api.Capability{Name: name, Level: api.OK, Detail: fmt.Sprintf("a container's %s is limited by the cgroup v2 controller %q", what, controller)}
	has, err := os.ReadFile(filepath.Join(cgroupMount, "cgroup.controllers"))
	if err != nil || unified() != nil || !slices.Contains(strings.Fields(string(has)), controller) {
		c.Level = api.Missing
		c.Detail = fmt.Sprintf("a container's %s is not limited: the host's cgroup v2 has no %q controller (a cgroup v1 hierarchy may hold it)", what, controller)
		c.Remedy = "boot the host with systemd.unified_cgroup_hierarchy=1 and cgroup_no_v1=all"
		return c
	}
	enabled, err := os.ReadFile(filepath.Join(cgroupMount, "cgroup.subtree_control"))
	if err != nil || slices.Contains(strings.Fields(string(enabled)), controller) {
		return c
	}
	// Not handed down yet: Start does that. It cannot where processes are in the way, save in the machine's own root, which
	// has no cgroup.type.
	_, err = os.Stat(filepath.Join(cgroupMount, "cgroup.type"))
	processes, _ := os.ReadFile(filepath.Join(cgroupMount, "cgroup.procs"))
	if err == nil && len(processes) > 0 {
		c.Level = api.Limited
		c.Detail = fmt.Sprintf("a container's %s is not limited: the controller %q cannot be handed down while %s, not the machine's own root, has processes itself", what, controller, cgroupMount)
		c.Remedy = "move the processes in " + filepath.Join(cgroupMount, "cgroup.procs") + " into a cgroup below"
	}
	return c
}

func exitStatus() api.Capability {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err = unix.IoctlPidfdInfo(fd, &info)
		_ = unix.Close(fd)
	}
	// 6.13 and 6.14 have the call, but not the status.
	if err == nil && atLeast(6, 15) {
		return api.Capability{Name: "container-exit-status", Level: api.OK, Detail: "the kernel keeps how a container's first process ended"}
	}
	return api.Capability{
		Name: "container-exit-status", Level: api.Limited,
		Detail: "this kernel does not keep how a process that is not ours ended: a halt is told from a crash by the cgroups left behind",
		Remedy: "Linux 6.15 or newer",
	}
}

// atLeast compares the running kernel's version.
func atLeast(major, minor int) bool {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return false
	}
	var a, b int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}
