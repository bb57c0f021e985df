package hardware

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"polder/api"
	"polder/internal/command"
)

// version of a tool: major, minor, patch.
type version [3]int

func (v version) String() string {
	if v[2] == 0 {
		return fmt.Sprintf("%d.%d", v[0], v[1])
	}
	return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2])
}

func (v version) less(w version) bool {
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

var versionForm = regexp.MustCompile(`\b[vV]?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?`)

// parseVersion finds the first version in what a tool prints.
func parseVersion(text string) (version, bool) {
	m := versionForm.FindStringSubmatch(text)
	if m == nil {
		return version{}, false
	}
	var v version
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1]) // digits, or nothing
	}
	return v, true
}

// tool is a program that Polder runs.
type tool struct {
	name    string // of the capability
	program string
	args    []string // that make it print its version
	use     string
	least   version // older ones are limited
	older   string  // what is wrong with those
}

var tools = []tool{
	{"crun", "crun", []string{"--version"}, "runs containers", version{1, 8, 0}, "has no idmapped mounts"},
	{"qemu", "qemu-system-" + qemuArch, []string{"--version"}, "runs VMs", version{8, 2, 0}, "crashes Debian 13's kernel under TCG (7.2 does)"},
	{"qemu-img", "qemu-img", []string{"--version"}, "makes and converts disks", version{7, 2, 0}, "is not tried"},
	{"mmdebstrap", "mmdebstrap", []string{"--version"}, "builds images", version{1, 3, 0}, "is not tried"},
	{"btrfs-progs", "btrfs", []string{"--version"}, "shows pools to people", version{6, 2, 0}, "is not tried"},
	{"dnsmasq", "dnsmasq", []string{"--version"}, "does DHCP and DNS of networks", version{2, 85, 0}, "is not tried"},
	{"nft", "nft", []string{"--version"}, "does firewall and NAT", version{1, 0, 0}, "is not tried"},
	{"criu", "criu", []string{"--version"}, "moves running containers", version{4, 1, 0}, "fails on newer kernels' vDSO"},
}

func findTool(name string) tool {
	for _, t := range tools {
		if t.name == name {
			return t
		}
	}
	return tool{name: name, program: name, args: []string{"--version"}}
}

// version asks the tool. api.Unsupported: it is not installed.
func (t tool) version(ctx context.Context) (version, error) {
	out, err := command.Run(ctx, nil, t.program, t.args...)
	if err != nil {
		return version{}, err
	}
	v, ok := parseVersion(string(out))
	if !ok {
		return v, fmt.Errorf("%s %s: no version in %.100q", t.program, strings.Join(t.args, " "), out)
	}
	return v, nil
}

func (t tool) missing(name string) api.Capability {
	return api.Capability{
		Name: name, Level: api.Missing, Detail: t.program + " is not installed: it " + t.use,
		Remedy: "apt-get install " + command.Package(t.program),
	}
}

func (t tool) reinstall() string { return "apt-get install --reinstall " + command.Package(t.program) }

// capability says whether the tool is there and new enough.
func (t tool) capability(ctx context.Context) (api.Capability, version) {
	v, err := t.version(ctx)
	c := api.Capability{Name: t.name, Level: api.OK, Detail: v.String() + ", " + t.use}
	switch {
	case api.KindOf(err) == api.Unsupported:
		return t.missing(t.name), v
	case err != nil:
		c.Level, c.Detail, c.Remedy = api.Limited, lastLine(err), t.reinstall()
	case v.less(t.least):
		c.Level = api.Limited
		c.Detail = fmt.Sprintf("%s, want %s or newer: older %s", v, t.least, t.older)
		c.Remedy = newerPackage(command.Package(t.program))
	}
	return c, v
}

// newerPackage is how to get a newer one than the distribution's release has.
func newerPackage(name string) string {
	text, _ := os.ReadFile("/etc/os-release")
	if strings.Contains(string(text), "VERSION_CODENAME=bookworm") {
		return "apt-get install -t bookworm-backports " + name
	}
	return "apt-get update && apt-get install " + name
}

func toolProbe(name string) func(context.Context) []api.Capability {
	return func(ctx context.Context) []api.Capability {
		c, _ := findTool(name).capability(ctx)
		return []api.Capability{c}
	}
}

func probeQEMU(ctx context.Context) []api.Capability {
	c, v := findTool("qemu").capability(ctx)
	if least := findTool("qemu").least; c.Level == api.Limited && v != (version{}) && cpuHas("vmx", "svm") {
		c.Detail = fmt.Sprintf("%s, want %s or newer: older ones move and fork VMs less well", v, least)
	}
	return []api.Capability{c}
}

// firmwarePaths are where distributions keep UEFI firmware for VMs.
var firmwarePaths = []string{
	"/usr/share/OVMF/OVMF_CODE_4M.fd",
	"/usr/share/OVMF/OVMF_CODE.fd",
	"/usr/share/edk2/ovmf/OVMF_CODE.fd",
	"/usr/share/AAVMF/AAVMF_CODE.fd",
}

func probeOVMF(context.Context) []api.Capability {
	for _, path := range firmwarePaths {
		if _, err := os.Stat(path); err == nil {
			return []api.Capability{{Name: "ovmf", Level: api.OK, Detail: "UEFI firmware for VMs: " + path}}
		}
	}
	return []api.Capability{{
		Name: "ovmf", Level: api.Missing, Detail: "no UEFI firmware: VMs start by BIOS only", Remedy: "apt-get install ovmf",
	}}
}

// lastLine is the end of what a tool complained about: tools say a lot first.
func lastLine(err error) string {
	var failed *command.Error
	if !errors.As(err, &failed) {
		return err.Error()
	}
	text := failed.Stderr
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	if text == "" {
		return failed.Error()
	}
	return failed.Argv[0] + ": " + text
}

func reader(text string) io.Reader { return strings.NewReader(text) }
