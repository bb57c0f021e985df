package container

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

func example(t *testing.T) model.Spec {
	t.Helper()
	return model.Spec{
		ID: "6f1b3f0e-8a53-4d0b-9a55-0d5f0f4f6a11", Name: "c1", Dir: t.TempDir(), Root: model.Root{Tree: t.TempDir()}, CPUs: 2, Memory: 256 * api.MiB,
		IDBase: 1 << 20, IDCount: 65536, Cgroup: "/polder/c1",
		NICs: []model.NIC{{
			Name: "eth0", Domain: "polder.internal", DNS: []netip.Addr{netip.MustParseAddr("10.87.0.1")},
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.87.0.5/24"), netip.MustParsePrefix("fd00::5/64")},
		}},
	}
}

func TestSystemConfig(t *testing.T) {
	ve := example(t)
	c, err := config(ve, "/root/dir", limits{memory: true, cpu: true})
	if err != nil {
		t.Fatal(err)
	}
	if c.Linux.UIDMappings[0] != (specs.LinuxIDMapping{ContainerID: 0, HostID: 1 << 20, Size: 65536}) {
		t.Errorf("uid mappings %v", c.Linux.UIDMappings)
	}
	for _, ns := range c.Linux.Namespaces {
		if ns.Path != "" {
			t.Errorf("namespace %s is taken from %s: a VE in it could not be moved", ns.Type, ns.Path)
		}
	}
	if len(c.Linux.Namespaces) != 7 {
		t.Errorf("%d namespaces, want all 7", len(c.Linux.Namespaces))
	}
	if !slices.Contains(c.Process.Env, "MEMORY_PRESSURE_WATCH=/dev/null") {
		t.Errorf("environment %q", c.Process.Env)
	}
	if *c.Linux.Resources.Memory.Limit != 256<<20 || *c.Linux.Resources.CPU.Quota != 200_000 || c.Linux.Resources.Pids != nil {
		content, _ := json.Marshal(c.Linux.Resources)
		t.Errorf("resources %s", content)
	}
	if c.Process.NoNewPrivileges {
		t.Error("setuid programs would not work")
	}
	for _, m := range c.Mounts {
		if m.Type == "bind" {
			t.Errorf("%s is bound from the host: a VE with it could not be moved", m.Destination)
		}
	}
	none, err := config(ve, "/root/dir", limits{})
	if err != nil || none.Linux.Resources.Memory != nil || none.Linux.Resources.CPU != nil {
		t.Errorf("limits are set that the host cannot keep: %v", err)
	}
}

func TestApplicationConfig(t *testing.T) {
	ve := example(t)
	mustWrite(t, ve.Root.Tree, "etc/passwd", passwdText)
	mustWrite(t, ve.Root.Tree, "etc/group", groupText)
	ve.App = &api.ImageConfig{Entrypoint: []string{"/srv/run"}, Cmd: []string{"-v"}, Env: []string{"PATH=/srv", "A=b"}, User: "web", WorkingDir: "/srv"}
	c, err := config(ve, ve.Root.Tree, limits{})
	if err != nil {
		t.Fatal(err)
	}
	p := c.Process
	if !slices.Equal(p.Args, []string{"/srv/run", "-v"}) || p.Cwd != "/srv" || p.User.UID != 101 || p.User.GID != 102 || !slices.Equal(p.User.AdditionalGids, []uint32{103, 4}) {
		t.Errorf("process %+v", p)
	}
	if !slices.Equal(p.Env, []string{"PATH=/srv", "A=b", "HOME=/srv", "HOSTNAME=c1"}) {
		t.Errorf("environment %q", p.Env)
	}
	if slices.Contains(p.Capabilities.Bounding, "CAP_SYS_ADMIN") || !slices.Contains(c.Linux.ReadonlyPaths, "/proc/sys") {
		t.Error("an application may administer its system")
	}
	ve.App = &api.ImageConfig{}
	if _, err := config(ve, ve.Root.Tree, limits{}); api.KindOf(err) != api.Invalid {
		t.Errorf("without a command: %v; want an invalid error", err)
	}
	ve.App = &api.ImageConfig{Cmd: []string{"x"}, User: "stranger"}
	if _, err := config(ve, ve.Root.Tree, limits{}); api.KindOf(err) != api.Invalid {
		t.Errorf("unknown user: %v; want an invalid error", err)
	}
}

// verdict plays a filter for one call with one argument.
func verdict(filter *specs.LinuxSeccomp, name string, arg uint64) (specs.LinuxSeccompAction, uint) {
	matches := func(c specs.LinuxSeccompArg) bool {
		switch c.Op {
		case specs.OpEqualTo:
			return arg == c.Value
		case specs.OpLessThan:
			return arg < c.Value
		case specs.OpGreaterThan:
			return arg > c.Value
		case specs.OpMaskedEqual:
			return arg&c.Value == c.ValueTwo
		default:
			return false
		}
	}
	for _, rule := range filter.Syscalls {
		if slices.Contains(rule.Names, name) && (len(rule.Args) == 0 || matches(rule.Args[0])) {
			if rule.ErrnoRet != nil {
				return rule.Action, *rule.ErrnoRet
			}
			return rule.Action, 0
		}
	}
	return filter.DefaultAction, *filter.DefaultErrnoRet
}

func TestSeccomp(t *testing.T) {
	const allow = syscall.Errno(0)
	for _, c := range []struct {
		name        string
		arg         uint64
		system, app syscall.Errno
	}{
		{"openat", 0, allow, allow},
		{"clone", unix.CLONE_VM | unix.CLONE_VFORK | 17, allow, allow},
		{"clone", unix.CLONE_NEWUTS | unix.CLONE_NEWNS, unix.EPERM, unix.EPERM},
		{"clone", unix.CLONE_NEWUSER, allow, unix.EPERM},
		{"unshare", unix.CLONE_NEWNS, allow, unix.EPERM},
		{"unshare", unix.CLONE_NEWUTS | unix.CLONE_NEWNS, unix.EPERM, unix.EPERM},
		{"clone3", 0, unix.ENOSYS, unix.ENOSYS},
		{"io_uring_setup", 0, unix.ENOSYS, unix.ENOSYS},
		{"landlock_create_ruleset", 0, unix.ENOSYS, unix.ENOSYS},
		{"mount", 0, allow, unix.EPERM},
		{"kexec_load", 0, unix.EPERM, unix.EPERM},
		{"init_module", 0, unix.EPERM, unix.EPERM},
		{"open_by_handle_at", 0, unix.EPERM, unix.EPERM},
		{"socket", unix.AF_INET, allow, allow},
		{"socket", unix.AF_NETLINK, allow, allow},
		{"socket", unix.AF_ALG, unix.EAFNOSUPPORT, unix.EAFNOSUPPORT},
		{"socket", unix.AF_NFC, allow, allow},
		{"socket", unix.AF_VSOCK, unix.EAFNOSUPPORT, unix.EAFNOSUPPORT},
		{"socket", unix.AF_XDP, allow, allow},
		{"from_the_future", 0, unix.ENOSYS, unix.ENOSYS},
	} {
		for system, want := range map[bool]syscall.Errno{true: c.system, false: c.app} {
			action, ret := verdict(seccomp(system), c.name, c.arg)
			if got := syscall.Errno(ret); got != want || (action == specs.ActAllow) != (want == allow) {
				t.Errorf("system %v, %s(%#x): %s %v; want %v", system, c.name, c.arg, action, got, want)
			}
		}
	}
}

// A call in two lists would have one verdict here and another by libseccomp.
func TestSyscallListsAreDisjoint(t *testing.T) {
	seen := map[string]bool{"clone": true, "unshare": true, "socket": true}
	for _, name := range slices.Concat(ordinary(), administration(), refusedForMoving(), forbidden()) {
		if seen[name] {
			t.Errorf("%s is in two lists", name)
		}
		seen[name] = true
	}
}

func TestIdentity(t *testing.T) {
	ve := example(t)
	files := map[string]string{}
	for _, file := range identity(ve) {
		files[file.name] = file.content
	}
	if files["/etc/resolv.conf"] != "search polder.internal\nnameserver 10.87.0.1\n" || files["/etc/hostname"] != "c1\n" {
		t.Errorf("%q", files)
	}
	if !strings.Contains(files["/etc/hosts"], "10.87.0.5 c1.polder.internal c1\nfd00::5 c1.polder.internal c1\n") {
		t.Errorf("hosts %q", files["/etc/hosts"])
	}
	if files["/etc/machine-id"] != "6f1b3f0e8a534d0b9a550d5f0f4f6a11\n" {
		t.Errorf("machine-id %q", files["/etc/machine-id"])
	}
	if _, ok := files["/var/lib/cloud/seed/nocloud/user-data"]; ok {
		t.Error("a seed without user-data")
	}
	ve.App, ve.NICs = &api.ImageConfig{}, nil
	for _, file := range identity(ve) {
		if file.name == "/etc/resolv.conf" || file.name == "/etc/machine-id" {
			t.Errorf("an application without network gets %s", file.name)
		}
	}
}

func TestSpecIsChecked(t *testing.T) {
	if err := checkSpec(example(t)); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*model.Spec){
		"disk":     func(ve *model.Spec) { ve.Root = model.Root{Disk: "x"} },
		"name":     func(ve *model.Spec) { ve.Name = "a\nnameserver 6.6.6.6" },
		"ids":      func(ve *model.Spec) { ve.IDBase = 0 },
		"cgroup":   func(ve *model.Spec) { ve.Cgroup = "/" },
		"no range": func(ve *model.Spec) { ve.IDCount = 0 },
	} {
		ve := example(t)
		spoil(&ve)
		if err := New().Prepare(t.Context(), ve); api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %v; want an invalid error", name, err)
		}
	}
}

func TestExitOf(t *testing.T) {
	system, app := example(t), example(t)
	app.App = &api.ImageConfig{}
	known := func(code int, signal syscall.Signal) model.ExitStatus {
		return model.ExitStatus{Known: true, Code: code, Signal: signal}
	}
	for _, c := range []struct {
		ve     model.Spec
		status model.ExitStatus
		want   model.Exit
	}{
		{system, known(0, 0), model.Exit{Reason: "powered off"}},
		{system, known(0, syscall.SIGINT), model.Exit{Reason: "powered off"}},
		{system, known(0, syscall.SIGHUP), model.Exit{Reboot: true, Reason: "rebooted"}},
		{system, known(exitReboot, 0), model.Exit{Reboot: true, Reason: "rebooted"}},
		{system, known(0, syscall.SIGKILL), model.Exit{Crashed: true, Reason: "killed by signal 9"}},
		{system, model.ExitStatus{}, model.Exit{Reason: "powered off"}}, // no cgroup of a service is left
		{app, known(0, 0), model.Exit{Reason: "exit status 0"}},
		{app, known(exitReboot, 0), model.Exit{Crashed: true, Reason: "exit status 133"}},
	} {
		if got := exitOf(c.ve, c.status); got != c.want {
			t.Errorf("app %v, %s: %+v; want %+v", c.ve.App != nil, c.status, got, c.want)
		}
	}
	if got := exitOf(app, model.ExitStatus{}); !got.Crashed {
		t.Errorf("an application that ended nobody knows how: %+v", got)
	}
	mustWrite(t, system.Dir, "container/stopping", "")
	if got := exitOf(system, known(0, syscall.SIGKILL)); got.Crashed {
		t.Errorf("killed by Stop: %+v", got)
	}
}
