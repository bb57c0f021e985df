package container

import (
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"polder/api"
	"polder/internal/model"
)

// multipathSysctl is there when the kernel speaks multipath TCP.
const multipathSysctl = netSysctls + "/mptcp/enabled"

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// config is the OCI configuration of a VE whose root is mounted at root. limits are those that this host can keep.
func config(ve model.Spec, root string, limits limits) (*specs.Spec, error) {
	process, err := firstProcess(ve, root)
	if err != nil {
		return nil, err
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: ve.IDBase, Size: ve.IDCount}}
	c := &specs.Spec{
		Version:  "1.2.0",
		Process:  process,
		Root:     &specs.Root{Path: root},
		Hostname: ve.Name,
		Mounts:   mounts(ve.App == nil),
		Linux: &specs.Linux{
			UIDMappings: ids,
			GIDMappings: ids,
			// crun makes all of them, also the network's: the veth is put in before the first process starts.
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
			},
			CgroupsPath: ve.Cgroup,
			Resources:   resources(ve, limits),
			Seccomp:     seccomp(ve.App == nil),
			MaskedPaths: []string{
				"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
				"/sys/devices/virtual/powercap", "/sys/firmware",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"},
		},
	}
	// The kernel's default lets nobody ping, and what a distribution sets names groups that are not in the VE's range.
	c.Linux.Sysctl = map[string]string{"net.ipv4.ping_group_range": "0 " + strconv.Itoa(int(ve.IDCount)-1)}
	// A socket of multipath TCP can't be carried; Go programs ask for it and do without when it is off.
	if _, err := os.Stat(multipathSysctl); err == nil {
		c.Linux.Sysctl["net.mptcp.enabled"] = "0"
	}
	if ve.App != nil {
		c.Linux.ReadonlyPaths = append(c.Linux.ReadonlyPaths, "/proc/sys")
		// In a network namespace of one's own there is nothing to protect by privileged ports.
		c.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	return c, nil
}

// mounts of every container. /sys is read-only, which also tells systemd that udev and hardware are not its business;
// only the VE's own cgroup, which its systemd runs, can be written.
func mounts(system bool) []specs.Mount {
	cgroup := "ro"
	if system {
		cgroup = "rw"
	}
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=1m"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", cgroup}},
	}
	if system {
		// As systemd would mount it, but with what writeIdentity has put into the volume's /run: settings for this model
		// only, hidden as soon as another model boots the same volume.
		all = append(all, specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=755", "size=20%", "nr_inodes=800k", "tmpcopyup"}})
	}
	return all
}

func resources(ve model.Spec, limits limits) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if limits.memory && ve.Memory > 0 {
		bytes := int64(ve.Memory)
		r.Memory = &specs.LinuxMemory{Limit: &bytes}
	}
	if limits.cpu && ve.CPUs > 0 {
		period := uint64(100_000) // microseconds, the kernel's default
		quota := int64(ve.CPUs) * int64(period)
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if limits.pids {
		most := int64(tasks)
		r.Pids = &specs.LinuxPids{Limit: &most}
	}
	return r
}

// tasks is how many threads a VE may have: far more than any system needs, few enough that a fork bomb leaves the host
// its pids.
const tasks = 32768

// firstProcess is the VE's init, or the application itself.
func firstProcess(ve model.Spec, root string) (*specs.Process, error) {
	if ve.App != nil {
		return application(ve, root)
	}
	return &specs.Process{
		Args: []string{"/sbin/init"},
		Cwd:  "/",
		Env: []string{
			"PATH=" + searchPath,
			"container=polder",
			"container_uuid=" + ve.ID,
			// The kernel's pressure trigger is lost in a live move, and systemd would spin on it.
			"MEMORY_PRESSURE_WATCH=/dev/null",
		},
		Capabilities: capabilitySet(systemCapabilities()),
	}, nil
}

func application(ve model.Spec, root string) (*specs.Process, error) {
	app := ve.App
	args := append(append([]string{}, app.Entrypoint...), app.Cmd...)
	if len(args) == 0 {
		return nil, api.Errorf(api.Invalid, "ve %q: its image names no command to run", ve.Name)
	}
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	u, err := lookupUser(t, app.User)
	if err != nil {
		return nil, api.Errorf(api.KindOf(err), "ve %q: %w", ve.Name, err)
	}
	dir := app.WorkingDir
	if dir == "" {
		dir = "/"
	}
	return &specs.Process{
		Args:         args,
		Cwd:          dir,
		Env:          environment(app.Env, "PATH="+searchPath, "HOME="+u.home, "HOSTNAME="+ve.Name),
		User:         specs.User{UID: u.uid, GID: u.gid, AdditionalGids: u.groups},
		Capabilities: capabilitySet(applicationCapabilities()),
	}, nil
}

// environment is set with the defaults that it does not say otherwise.
func environment(set []string, defaults ...string) []string {
	has := map[string]bool{}
	for _, s := range set {
		name, _, _ := strings.Cut(s, "=")
		has[name] = true
	}
	all := append([]string{}, set...)
	for _, d := range defaults {
		if name, _, _ := strings.Cut(d, "="); !has[name] {
			all = append(all, d)
		}
	}
	return all
}

// capabilitySet gives a process capabilities, all of them within the VE's user namespace only. Not inheritable, not
// ambient: a process that is not root has none.
func capabilitySet(names []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

// systemCapabilities are all that have an effect in a user namespace of one's own. Those that the kernel honours outside of
// any only (modules, raw I/O, the clock, its log, audit, security modules) would be nothing but a promise: systemd's units
// look whether they have them, and fail where the kernel then refuses.
func systemCapabilities() []string {
	return strings.Fields(`
		CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP
		CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER
		CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE
		CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_SETFCAP CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)
}

// applicationCapabilities are what application images expect: the set that other engines give by default.
func applicationCapabilities() []string {
	return strings.Fields(`
		CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD CAP_NET_BIND_SERVICE CAP_NET_RAW
		CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT`)
}
