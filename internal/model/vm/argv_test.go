package vm

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"polder/api"
	"polder/internal/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestArguments(t *testing.T) {
	plain := model.Spec{
		ID: "6f1d8b1e-3a57-4d0c-9a0e-0d7f3c1f2a11", Name: "v1", Dir: "/d/ve/6f1d8b1e-3a57-4d0c-9a0e-0d7f3c1f2a11",
		Root: model.Root{Disk: "/d/pools/default/v1.raw", Format: "raw"}, CPUs: 1, Memory: 512 * api.MiB, Firmware: api.BIOS,
	}
	full := plain
	full.Root = model.Root{Disk: "/d/pools/a,b/v1.qcow2", Format: "qcow2"}
	full.CPUs, full.Memory, full.Firmware = 4, 3*api.GiB+1, api.UEFI
	full.CloudInit.UserData = "#cloud-config\n"
	full.NICs = []model.NIC{{MAC: "52:54:00:00:00:01", HostName: "tap0", MTU: 1450}, {MAC: "52:54:00:00:00:02", HostName: "tap1"}}
	m := machine{Version: 1, Machine: "pc-q35-10.0", CPU: portableCPU, Generation: "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"}
	for name, args := range map[string][]string{
		"plain":    arguments(plain, m, offer{Firmware: "/usr/share/OVMF"}),
		"full-tcg": arguments(full, m, offer{Firmware: "/usr/share/OVMF"}),
		"full-kvm": arguments(full, m, offer{KVM: true, VhostNet: true, Firmware: "/usr/share/OVMF"}),
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, args) })
	}
}

// golden compares a command line with the one kept, an option a line.
func golden(t *testing.T, name string, args []string) {
	t.Helper()
	var got strings.Builder
	for i, a := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(a, "-"):
			got.WriteString("\n")
		default:
			got.WriteString(" ")
		}
		got.WriteString(a)
	}
	got.WriteString("\n")
	path := filepath.Join("testdata", name+".args")
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestNewestQ35(t *testing.T) {
	help := "pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)\n" +
		"pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)\n" +
		"q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)\n"
	if got, err := newestQ35(help); err != nil || got != "10.0" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := newestQ35("none\n"); api.KindOf(err) != api.Unsupported {
		t.Errorf("got %v", err)
	}
	for number, old := range map[string]bool{"7.2": true, "8.2": true, "9.0": false, "10.0": false} {
		if oldQEMU(number) != old {
			t.Errorf("%s: old is %v", number, !old)
		}
	}
}

func TestCheckRefusesWhatCannotRun(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := model.Spec{Dir: "/d", Root: model.Root{Disk: disk, Format: "raw"}, CPUs: 1, Memory: 512 * api.MiB, IDBase: 500000, Cgroup: "/polder/v1"}
	if err := check(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*model.Spec){
		"no disk":        func(s *model.Spec) { s.Root = model.Root{Tree: "/tree"} },
		"other format":   func(s *model.Spec) { s.Root.Format = "vmdk" },
		"relative disk":  func(s *model.Spec) { s.Root.Disk = "disk" },
		"1 MiB":          func(s *model.Spec) { s.Memory = api.MiB },
		"no cpu":         func(s *model.Spec) { s.CPUs = 0 },
		"disk is a dir":  func(s *model.Spec) { s.Root.Disk = filepath.Dir(disk) },
		"root":           func(s *model.Spec) { s.IDBase = 0 },
		"no cgroup":      func(s *model.Spec) { s.Cgroup = "" },
		"many networks":  func(s *model.Spec) { s.NICs = make([]model.NIC, 9) },
		"disk not there": func(s *model.Spec) { s.Root.Disk += "x" },
	} {
		bad := good
		spoil(&bad)
		if err := check(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
