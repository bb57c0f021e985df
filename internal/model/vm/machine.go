package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/command"
	"polder/internal/model"
)

// machine is what is settled for a VE at its first start and stays the same for its life, whichever QEMU and host it comes
// to run on: the system inside must not find other hardware one day, and a move needs both sides alike.
type machine struct {
	Version int    `json:"version"`
	Machine string `json:"machine"` // "pc-q35-10.0", never the alias "q35"
	CPU     string `json:"cpu"`
	// Generation changes when a VE's past is not its own any more (fork, restore): the kernel inside reseeds.
	Generation string `json:"generation"`
}

const machineVersion = 1

// portableCPU is the CPU of all new VEs: x86-64-v2 with AES, which servers have had since 2010, from either vendor, and
// which TCG has in full; so a VE can move between unlike hosts. What a newer CPU offers beyond (AVX and later) is not
// shown: a program that found it could not be moved. "max" and "host" are whatever the host has. The versioned name does
// not change with QEMU; enforce refuses to start, naming the flag, where a host lacks one, instead of leaving it out.
// Under KVM QEMU puts in the host's vendor.
const portableCPU = "Westmere-v1,enforce=on"

// settle reads the VE's machine, and decides it at the first start.
func (m *Model) settle(ctx context.Context, ve model.Spec) (machine, error) {
	path := filepath.Join(ve.Dir, "machine.json")
	var got machine
	switch err := readJSON(path, &got); {
	case err == nil && got.Version > machineVersion:
		return got, api.Errorf(api.Unsupported, "%s has version %d, newer than %d: use a newer polder", path, got.Version, machineVersion)
	case err == nil:
		return got, nil
	case !errors.Is(err, os.ErrNotExist):
		return got, err
	}
	newest, err := m.version.newest(ctx, m.cfg.QEMU)
	if err != nil {
		return got, err
	}
	got = machine{Version: machineVersion, Machine: "pc-q35-" + newest, CPU: portableCPU, Generation: uuid.NewString()}
	return got, writeJSON(path, got)
}

// qemuVersion remembers the newest machine type of an emulator, which is its version, for as long as its file is the same.
type qemuVersion struct {
	mu     sync.Mutex
	of     os.FileInfo
	number string // "10.0"

	all offers
}

func (v *qemuVersion) newest(ctx context.Context, emulator string) (string, error) {
	path, err := command.Find(emulator)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.of != nil && os.SameFile(v.of, info) && v.of.ModTime().Equal(info.ModTime()) {
		return v.number, nil
	}
	out, err := command.Run(ctx, nil, path, "-machine", "help")
	if err != nil {
		return "", err
	}
	number, err := newestQ35(string(out))
	if err != nil {
		return "", fmt.Errorf("%s -machine help: %w", path, err)
	}
	v.of, v.number = info, number
	return number, nil
}

var q35Alias = regexp.MustCompile(`(?m)^q35 .*\(alias of pc-q35-([0-9]+\.[0-9]+)\)`)

func newestQ35(help string) (string, error) {
	found := q35Alias.FindStringSubmatch(help)
	if found == nil {
		return "", api.Errorf(api.Unsupported, "it does not offer the machine q35")
	}
	return found[1], nil
}

// leastQEMU is the oldest version that all arguments work with: -accel kvm,device=.
var leastQEMU = [2]int{9, 0}

func oldQEMU(number string) bool {
	major, minor, _ := strings.Cut(number, ".")
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	return a < leastQEMU[0] || a == leastQEMU[0] && b < leastQEMU[1]
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// writeJSON replaces a file whole: whoever reads it finds the old or the new one, also after a crash of the machine.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(path+".new", path)
}
