package hardware

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"polder/api"
)

func TestInventory(t *testing.T) {
	inv, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	if inv.CPUs < 1 || inv.Memory < 64*api.MiB || inv.Kernel == "" || inv.Arch == "" || inv.BootedAt.Year() < 2000 {
		t.Errorf("got %+v", inv)
	}
}

// Whatever the machine, every capability is named once, has a detail, and what is not ok has a remedy.
func TestCapabilitiesAreComplete(t *testing.T) {
	found := CapabilitiesAt(t.Context(), t.TempDir()+"/not/there/yet")
	seen := map[string]bool{}
	for _, c := range found {
		if seen[c.Name] || c.Detail == "" || strings.Contains(c.Detail, "\n") {
			t.Errorf("twice, without detail or of several lines: %+v", c)
		}
		seen[c.Name] = true
		if !slices.Contains([]api.Level{api.OK, api.Limited, api.Missing}, c.Level) || (c.Level == api.OK) != (c.Remedy == "") {
			t.Errorf("level and remedy do not fit: %+v", c)
		}
	}
	for _, name := range append(slices.Clone(essential), "kvm", "inotify", "cgroup-memory", "idmapped-mounts", "vxlan", "reflink", "criu", "criu-pre-dump", "ovmf") {
		if !seen[name] {
			t.Errorf("nothing about %s", name)
		}
	}
	if _, err := json.Marshal(found); err != nil {
		t.Error(err)
	}
}

func TestProbeThatHangsIsCutOff(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	found := run(t.Context(), time.Millisecond, []probe{
		{"stuck", func(context.Context) []api.Capability { <-hang; return nil }},
		{"well", func(context.Context) []api.Capability { return []api.Capability{{Name: "well", Level: api.OK}} }},
		{"heeds", func(ctx context.Context) []api.Capability {
			<-ctx.Done()
			return []api.Capability{{Name: "heeds", Level: api.Missing}}
		}},
	})
	var got []string
	for _, c := range found {
		got = append(got, c.Name+" "+string(c.Level))
	}
	if want := []string{"stuck limited", "well ok", "heeds missing"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestKVMWithoutVirtualizationIsNotUsable(t *testing.T) {
	usable, why := KVM()
	if usable == (why != "") {
		t.Errorf("usable %v, but %q", usable, why)
	}
	if usable && !cpuHas("vmx", "svm") {
		t.Error("usable without vmx or svm")
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]version{
		"QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)\nCopyright": {10, 0, 13},
		"crun version 1.21\ncommit: 10269840aa07fb7e6b7e1acff6198692d8ff5c88":      {1, 21, 0},
		"nftables v1.1.3 (Commodore Bullmoose #4)":                                 {1, 1, 3},
		"btrfs-progs v6.14\n-EXPERIMENTAL":                                         {6, 14, 0},
		"mmdebstrap 1.5.7":                                                         {1, 5, 7},
		"Dnsmasq version 2.91  Copyright (c) 2000-2025 Simon Kelley":               {2, 91, 0},

		"Version: 4.1.1\n":    {4, 1, 1},
		"6.12.43+deb13-amd64": {6, 12, 43},
		"6.1.0-39-amd64":      {6, 1, 0},
	} {
		if got, ok := parseVersion(text); !ok || got != want {
			t.Errorf("%q: got %v", text, got)
		}
	}
	if v, ok := parseVersion("no such thing"); ok {
		t.Errorf("found %v in nothing", v)
	}
	if !(version{7, 2, 9}).less(version{8, 0, 0}) || (version{8, 2, 0}).less(version{8, 2, 0}) {
		t.Error("less is wrong")
	}
}

func TestFindCgroup2(t *testing.T) {
	const hybrid = `30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
`
	if got := findCgroup2(hybrid); got != "/sys/fs/cgroup/unified" {
		t.Errorf("got %q", got)
	}
	if got := findCgroup2("1 2 0:3 / / rw - ext4 /dev/vda rw\n"); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestControllerTakenByVersion1(t *testing.T) {
	c := controller("memory", "no limit", "", "/sys/fs/cgroup", []string{"cpu", "memory"})
	if c.Level != api.OK {
		t.Errorf("got %+v", c)
	}
	if c := controller("memory", "no limit", "", "/sys/fs/cgroup", nil); c.Level != api.Missing || c.Remedy == "" {
		t.Errorf("got %+v", c)
	}
}
