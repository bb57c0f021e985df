package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"polder/internal/command"
)

// describe says where, and with what, it was measured.
func describe(ctx context.Context, b *bench) ([]string, error) {
	machine, err := machineLine()
	if err != nil {
		return nil, err
	}
	hosts, err := b.client.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	accelerator := "not known"
	for _, c := range hosts[0].Capabilities {
		if c.Name == "kvm" {
			accelerator = fmt.Sprintf("kvm is %s (%s)", c.Level, c.Detail)
		}
	}
	lines := []string{machine, "accelerator: " + accelerator}
	versions := []version{
		{"Polder", func() (string, error) { return hosts[0].Version, nil }},
		{"QEMU", func() (string, error) { return b.inHost(ctx, "qemu-system-x86_64", "--version") }},
		{"crun", func() (string, error) { return b.inHost(ctx, "crun", "--version") }},
		{"Incus", func() (string, error) {
			out, err := command.Run(ctx, nil, "incus", "--version")
			return string(out), err
		}},
	}
	told, err := told(versions)
	if err != nil {
		return nil, err
	}
	load, err := loadNow()
	if err != nil {
		return nil, err
	}
	return append(lines, told, "load at the end: "+load), nil
}

// version of a program, as it says itself.
type version struct {
	what string
	get  func() (string, error)
}

func told(versions []version) (string, error) {
	var all []string
	for _, v := range versions {
		text, err := v.get()
		if err != nil {
			return "", err
		}
		text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
		for _, prefix := range []string{"QEMU emulator version ", "crun version ", "Version: "} {
			text = strings.TrimPrefix(text, prefix)
		}
		all = append(all, v.what+" "+text)
	}
	return "versions: " + strings.Join(all, ", "), nil
}

// loadNow are the machine's load averages.
func loadNow() (string, error) {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Fields(string(load))[:3], " "), nil
}

func cpuName() string { return field("/proc/cpuinfo", "model name", ":") }
func osName() string  { return strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`) }

// field is the value of the first line that begins with key.
func field(path, key, separator string) string {
	data, _ := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(line, separator)
		if ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return "not known"
}

func machineLine() (string, error) {
	var name unix.Utsname
	var info unix.Sysinfo_t
	if err := errors.Join(unix.Uname(&name), unix.Sysinfo(&info)); err != nil {
		return "", err
	}
	return fmt.Sprintf("machine: %d cores (%s), %.0f GiB, Linux %s, %s", runtime.NumCPU(), cpuName(),
		float64(info.Totalram)*float64(info.Unit)/(1<<30), unix.ByteSliceToString(name.Release[:]), osName()), nil
}
