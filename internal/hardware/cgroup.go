package hardware

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"polder/api"
)

// controllers that Polder limits VEs with, and what is lost without each.
var controllers = []struct{ name, without, boot string }{
	{"cpu", "VEs cannot be kept from each other's CPU time", ""},
	{"memory", "a container's memory is not limited", "cgroup_enable=memory"},
	{"io", "VEs cannot be kept from each other's disk bandwidth", ""},
	{"pids", "a container can use up the host's process ids", ""},
	{"cpuset", "VEs cannot be tied to CPUs", ""},
}

func probeCgroups(context.Context) []api.Capability {
	mount := cgroup2Mount()
	c := api.Capability{Name: "cgroup2", Level: api.OK, Detail: "mounted at " + mount}
	const unified = "boot with the kernel parameter systemd.unified_cgroup_hierarchy=1"
	switch mount {
	case "":
		c = api.Capability{Name: "cgroup2", Level: api.Missing, Detail: "not mounted", Remedy: "mount -t cgroup2 cgroup2 /sys/fs/cgroup, or " + unified}
	case "/sys/fs/cgroup":
	default:
		c.Level, c.Remedy = api.Limited, unified
		c.Detail += ", beside version 1: some of the controllers may be taken"
	}
	found := []api.Capability{c}
	text, _ := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	there := strings.Fields(string(text))
	for _, ctl := range controllers {
		found = append(found, controller(ctl.name, ctl.without, ctl.boot, mount, there))
	}
	return found
}

func controller(name, without, boot, mount string, there []string) api.Capability {
	c := api.Capability{Name: "cgroup-" + name, Level: api.OK, Detail: "controller is there"}
	if mount != "" && slices.Contains(there, name) {
		return c
	}
	c.Level = api.Missing
	c.Detail = without
	v1 := name
	if name == "io" {
		v1 = "blkio"
	}
	hierarchy, known := v1Hierarchy(v1)
	switch {
	case known && hierarchy != "0":
		c.Detail = fmt.Sprintf("taken by cgroup version 1 (hierarchy %s): %s", hierarchy, without)
		c.Remedy = "boot with the kernel parameter systemd.unified_cgroup_hierarchy=1"
	case boot != "":
		c.Remedy = "boot with the kernel parameter " + boot
	default:
		c.Remedy = "boot a kernel that has it (Debian's has)"
	}
	return c
}

// cgroup2Mount is the first mount point of cgroup2; "": none.
func cgroup2Mount() string {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	return findCgroup2(string(table))
}

// findCgroup2 reads proc(5)'s mountinfo: the fifth field is the mount point, the one after "-" the type.
func findCgroup2(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			return fields[4]
		}
	}
	return ""
}

// v1Hierarchy finds a controller in /proc/cgroups, whose columns are name, hierarchy (0: not in version 1), number of
// groups, enabled.
func v1Hierarchy(name string) (hierarchy string, known bool) {
	table, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) == 4 && fields[0] == name {
			return fields[1], true
		}
	}
	return "", false
}
