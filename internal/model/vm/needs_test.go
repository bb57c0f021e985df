package vm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"polder/api"
	"polder/internal/model"
)

const probeOutput = `{"QMP": {"version": {}, "capabilities": ["oob"]}}
{"return": {}}
{"return": [{"name": "pc-q35-10.0", "alias": "q35"}, {"name": "pc-q35-9.2"}], "id": "machines"}
{"return": [{"name": "Westmere-v1", "unavailable-features": []}, {"name": "EPYC-v4", "unavailable-features": ["avx2", "fsgsbase"]}], "id": "cpus"}
{"timestamp": {}, "event": "SHUTDOWN"}
`

func TestReadProbe(t *testing.T) {
	got, err := readProbe([]byte(probeOutput))
	if err != nil {
		t.Fatal(err)
	}
	if got.newest != "pc-q35-10.0" || !got.machines["pc-q35-9.2"] || got.machines["pc-q35-11.0"] || len(got.cpus["EPYC-v4"]) != 2 {
		t.Errorf("got %+v", got)
	}
	if _, err := readProbe([]byte("{}\n")); api.KindOf(err) != api.Unsupported {
		t.Errorf("of nothing: %v", err)
	}
}

// What QEMU says is not trusted to be well formed.
func FuzzReadProbe(f *testing.F) {
	f.Add([]byte(probeOutput))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = readProbe(data) })
}

func TestFits(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "qemu")
	script := "#!/bin/sh\ncat <<'E'\n" + probeOutput + "E\n"
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	m := New(Config{QEMU: fake, Firmware: dir})
	good := needs{Version: 1, Machine: "pc-q35-9.2", CPU: portableCPU, Accelerator: "tcg"}
	for name, test := range map[string]struct {
		change func(*needs)
		want   string // "": it fits
		except api.MoveMode
	}{
		"all there":      {func(*needs) {}, "", ""},
		"stopped":        {func(n *needs) { n.Accelerator = "" }, "", ""},
		"newer machine":  {func(n *needs) { n.Machine = "pc-q35-11.0" }, "does not offer it", ""},
		"kvm":            {func(n *needs) { n.Accelerator = "kvm" }, "tcg", api.Cold},
		"other vendor":   {func(n *needs) { n.Vendor = "Other" }, "the target's is of", api.Cold},
		"lacking":        {func(n *needs) { n.CPU = "EPYC-v4" }, "avx2, fsgsbase", ""},
		"unknown model":  {func(n *needs) { n.CPU = "Future-v1,enforce=on" }, "the model", ""},
		"uefi":           {func(n *needs) { n.UEFI = true }, "has none", ""},
		"newer polder":   {func(n *needs) { n.Version = 99 }, "newer", ""},
		"any of the cpu": {func(n *needs) { n.CPU = "max" }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := good
			test.change(&n)
			data, err := json.Marshal(n)
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Fits(t.Context(), data)
			if err != nil {
				t.Fatal(err)
			}
			if test.want == "" {
				if len(got) > 0 {
					t.Errorf("blockers %+v", got)
				}
				return
			}
			if len(got) != 1 || !strings.Contains(got[0].Reason, test.want) || got[0].Except != test.except {
				t.Errorf("blockers %+v, want one with %q", got, test.want)
			}
		})
	}
	if _, err := m.Fits(t.Context(), []byte("{")); api.KindOf(err) != api.Invalid {
		t.Errorf("of nonsense: %v", err)
	}
}

func TestNeedsOfOneThatDoesNotRun(t *testing.T) {
	ve := model.Spec{Name: "v1", Dir: t.TempDir(), Firmware: api.UEFI}
	m := New(Config{})
	if _, err := m.Needs(t.Context(), ve); err == nil {
		t.Error("a VE that never ran needs something")
	}
	if err := writeJSON(ve.Dir+"/machine.json", machine{Version: 1, Machine: "pc-q35-10.0", CPU: portableCPU}); err != nil {
		t.Fatal(err)
	}
	data, err := m.Needs(t.Context(), ve)
	if err != nil || !strings.Contains(string(data), `"machine":"pc-q35-10.0"`) || !strings.Contains(string(data), `"uefi":true`) {
		t.Errorf("got %s, %v", data, err)
	}
}
