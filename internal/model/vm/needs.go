package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"polder/api"
	"polder/internal/command"
	"polder/internal/model"
)

// needs is what the target of a move must have.
type needs struct {
	Version     int    `json:"version"`
	Machine     string `json:"machine"`
	CPU         string `json:"cpu"`
	Accelerator string `json:"accelerator"`
	Vendor      string `json:"vendor"` // of the CPU, where the VE sees it: with KVM
	UEFI        bool   `json:"uefi"`
}

// Needs implements model.Mover.
func (m *Model) Needs(_ context.Context, ve model.Spec) ([]byte, error) {
	var settled machine
	if err := readJSON(filepath.Join(ve.Dir, "machine.json"), &settled); err != nil {
		return nil, fmt.Errorf("what vm %q needs: %w", ve.Name, err)
	}
	n := needs{Version: moveVersion, Machine: settled.Machine, CPU: settled.CPU, UEFI: ve.Firmware == api.UEFI}
	var r running
	if err := readJSON(runningFile(ve), &r); err == nil {
		n.Accelerator = r.Accelerator
	} else if !errors.Is(err, os.ErrNotExist) { // one that does not run moves cold
		return nil, err
	}
	if n.Accelerator == accelName(true) {
		n.Vendor = cpuVendor()
	}
	return json.Marshal(n)
}

// Fits implements model.Mover. It asks a QEMU that runs nothing what this host's CPU can do; the answer is kept for as long as
// the emulator's file is the same.
func (m *Model) Fits(ctx context.Context, data []byte) ([]api.Blocker, error) {
	var n needs
	if err := json.Unmarshal(data, &n); err != nil {
		return nil, api.Errorf(api.Invalid, "what the VE needs: %w", err)
	}
	if n.Version > moveVersion {
		return []api.Blocker{{Reason: "the source's polder is newer", Remedy: "use the same on both hosts"}}, nil
	}
	ours, err := m.version.offers(ctx, m.cfg.QEMU, accelName(m.cfg.KVM))
	if err != nil {
		return nil, err
	}
	var all []api.Blocker
	if !ours.machines[n.Machine] {
		all = append(all, api.Blocker{
			Descriptor: "machine " + n.Machine, Reason: "the target's QEMU (" + ours.newest + ") does not offer it",
			Remedy: "install at the target the QEMU of the source, or a newer one",
		})
	}
	if n.Accelerator != "" && n.Accelerator != accelName(m.cfg.KVM) {
		all = append(all, api.Blocker{
			Descriptor: "accelerator " + n.Accelerator, Except: api.Cold,
			Reason: "the target offers " + accelName(m.cfg.KVM) + ": a running system can't change its CPU",
		})
	}
	if vendor := cpuVendor(); n.Vendor != "" && n.Vendor != vendor {
		all = append(all, api.Blocker{Descriptor: "CPU of " + n.Vendor, Except: api.Cold, Reason: "the target's is of " + vendor})
	}
	name, _, _ := strings.Cut(n.CPU, ",")
	if lacks, known := ours.cpus[name]; name != "host" && name != "max" && (!known || len(lacks) > 0) {
		all = append(all, api.Blocker{Descriptor: "CPU " + name, Reason: "the target lacks " + strings.Join(append(lacks, ifNot(known, "the model")...), ", ")})
	}
	if _, err := os.Stat(filepath.Join(m.cfg.Firmware, "OVMF_CODE_4M.fd")); n.UEFI && err != nil {
		all = append(all, api.Blocker{Descriptor: "firmware UEFI", Reason: "the target has none", Remedy: "apt-get install ovmf at the target"})
	}
	return all, nil
}

func ifNot(known bool, text string) []string {
	if known {
		return nil
	}
	return []string{text}
}

// cpuVendor is "GenuineIntel", "AuthenticAMD", …
func cpuVendor() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "vendor_id" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// emulator is what a QEMU offers with an accelerator on this host.
type emulator struct {
	newest   string // machine type
	machines map[string]bool
	cpus     map[string][]string // what each model lacks here
}

// offers remembers what an emulator offers for as long as its file is the same.
type offers struct {
	mu   sync.Mutex // guards what follows
	of   os.FileInfo
	by   string
	what emulator
}

func (o *offers) get(ctx context.Context, path, accelerator string) (emulator, error) {
	info, err := os.Stat(path)
	if err != nil {
		return emulator{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of != nil && o.by == accelerator && os.SameFile(o.of, info) && o.of.ModTime().Equal(info.ModTime()) {
		return o.what, nil
	}
	what, err := probe(ctx, path, accelerator)
	if err != nil {
		return what, err
	}
	o.of, o.by, o.what = info, accelerator, what
	return what, nil
}

func (v *qemuVersion) offers(ctx context.Context, name, accelerator string) (emulator, error) {
	path, err := command.Find(name)
	if err != nil {
		return emulator{}, err
	}
	return v.all.get(ctx, path, accelerator)
}

// probe asks a QEMU without a VE.
func probe(ctx context.Context, path, accelerator string) (emulator, error) {
	const script = `{"execute":"qmp_capabilities"}{"execute":"query-machines","id":"machines"}{"execute":"query-cpu-definitions","id":"cpus"}{"execute":"quit"}`
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	out, err := command.Run(ctx, strings.NewReader(script), path, "-S", "-no-user-config", "-nodefaults", "-display", "none",
		"-machine", "q35,accel="+accelerator, "-m", "32M", "-qmp", "stdio")
	if err != nil {
		return emulator{}, err
	}
	return readProbe(out)
}

func readProbe(out []byte) (emulator, error) {
	what := emulator{machines: map[string]bool{}, cpus: map[string][]string{}}
	for line := range bytes.Lines(out) {
		var m struct {
			ID     string `json:"id"`
			Return []struct {
				Name  string   `json:"name"`
				Alias string   `json:"alias"`
				Lacks []string `json:"unavailable-features"`
			} `json:"return"`
		}
		if err := json.Unmarshal(line, &m); err != nil || m.ID == "" {
			continue // the greeting, an event, an answer that is no list
		}
		for _, entry := range m.Return {
			switch m.ID {
			case "machines":
				what.machines[entry.Name] = true
				if entry.Alias == "q35" {
					what.newest = entry.Name
				}
			case "cpus":
				what.cpus[entry.Name] = entry.Lacks
			}
		}
	}
	if len(what.machines) == 0 || len(what.cpus) == 0 {
		return what, api.Errorf(api.Unsupported, "qemu does not say what machines and CPUs it offers")
	}
	return what, nil
}
