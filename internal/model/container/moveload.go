package container

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/criu"
	"polder/internal/model"
)

// needs is what a container expects of the host that it goes to.
type needs struct {
	Version int      `json:"version"`
	Arch    string   `json:"arch"`
	Kernel  string   `json:"kernel"`
	CRIU    string   `json:"criu"`
	Flags   []string `json:"cpu_flags"`
}

// Needs is about this host: what a program has found out about its processor and kernel it takes for granted for ever.
func (m *Model) Needs(ctx context.Context, ve model.Spec) ([]byte, error) {
	version, err := criu.Version(ctx)
	if err != nil {
		return nil, api.Errorf(api.KindOf(err), "needs of container %q: %w", ve.Name, err)
	}
	flags, err := cpuFlags()
	if err != nil {
		return nil, err
	}
	return json.Marshal(needs{Version: moveVersion, Arch: runtime.GOARCH, Kernel: kernelRelease(), CRIU: version, Flags: flags})
}

// Fits compares them with this host.
func (m *Model) Fits(ctx context.Context, data []byte) ([]api.Blocker, error) {
	var n needs
	if err := json.Unmarshal(data, &n); err != nil {
		return nil, api.Errorf(api.Invalid, "needs of a container: %w", err)
	}
	flags, err := cpuFlags()
	if err != nil {
		return nil, err
	}
	have := needs{Version: moveVersion, Arch: runtime.GOARCH, Kernel: kernelRelease(), Flags: flags}
	blockers := n.unmet(have)
	if _, err := criu.Version(ctx); err != nil {
		blockers = append(blockers, api.Blocker{Reason: "the target: " + err.Error(), Remedy: "apt-get install criu", Except: api.Cold})
	}
	return blockers, nil
}

// unmet says what of n a host that has have lacks.
func (n needs) unmet(have needs) []api.Blocker {
	var all []api.Blocker
	lacks := func(remedy, format string, a ...any) {
		all = append(all, api.Blocker{Reason: fmt.Sprintf(format, a...), Remedy: remedy, Except: api.Cold})
	}
	if n.Version != have.Version {
		lacks("bring both hosts to the same version of Polder", "the source moves containers by protocol %d, the target by %d", n.Version, have.Version)
	}
	if n.Arch != have.Arch {
		all = append(all, api.Blocker{Reason: fmt.Sprintf("the source is %s, the target %s", n.Arch, have.Arch)})
		return all
	}
	if release(n.Kernel) > release(have.Kernel) {
		lacks("boot the target with the source's kernel or a newer one", "the target's kernel %s is older than the source's %s", have.Kernel, n.Kernel)
	}
	var missing []string
	for _, flag := range n.Flags {
		if !slices.Contains(have.Flags, flag) {
			missing = append(missing, flag)
		}
	}
	if len(missing) > 0 {
		lacks("move it to a host with the same processor or a newer one", "the target's processor has not: %s", strings.Join(missing, " "))
	}
	return all
}

// release is a kernel's version as one number: 6.12 is 6012.
func release(kernel string) int {
	var major, minor int
	_, _ = fmt.Sscanf(kernel, "%d.%d", &major, &minor)
	return major*1000 + minor
}

func kernelRelease() string {
	var name unix.Utsname
	_ = unix.Uname(&name)
	return unix.ByteSliceToString(name.Release[:])
}

// cpuFlags are the processor's features as /proc/cpuinfo names them: those that programs can use.
func cpuFlags() ([]string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name = strings.TrimSpace(name); name == "flags" || name == "Features" {
			return slices.DeleteFunc(strings.Fields(value), hostsOnly), nil
		}
	}
	return nil, lines.Err()
}

// hostsOnly says whether a flag is nothing that a program could see or use.
func hostsOnly(flag string) bool {
	return slices.Contains([]string{
		"arch_perfmon", "aperfmperf", "constant_tsc", "ept", "ept_ad", "flexpriority", "hypervisor", "nonstop_tsc", "nopl", "npt", "pebs", "bts", "rep_good",
		"svm", "tpr_shadow", "tsc_known_freq", "tsc_reliable", "vmx", "vnmi", "vpid", "xtopology", "cpuid", "monitor", "vmmcall", "kaiser", "pti", "ibrs", "ibpb",
		"stibp", "ssbd", "ibrs_enhanced", "md_clear", "flush_l1d", "l1tf", "dtherm", "ida", "arat", "pln", "pts", "hwp", "hwp_notify", "hwp_act_window", "hwp_epp", "hwp_pkg_req",
	}, flag)
}

// Load measures the VE's memory, and from a sample of its pages how much of it is written anew.
func (m *Model) Load(ctx context.Context, ve model.Spec, d time.Duration) (model.Load, error) {
	w, ok := m.running(ve)
	if !ok {
		return model.Load{}, api.Errorf(api.Precondition, "load of container %q: ve is not running: start it first", ve.Name)
	}
	defer w.Close()
	pids, err := pidsOf(ve)
	if err != nil {
		return model.Load{}, err
	}
	load := model.Load{Processes: len(pids), Throttle: true}
	for _, pid := range pids {
		// A share of what several processes have: CRIU sends shared memory once.
		load.Memory += memoryOf(pid)
	}
	changed, err := changing(ctx, pids, load.Memory, d)
	if err != nil {
		return model.Load{}, err
	}
	load.Room = 2 * load.Memory // what has come, and what is made of it
	load.DirtyRate = api.Bytes(changed * float64(load.Memory) / d.Seconds())
	return load, nil
}

// memoryOf is what of a process's memory is not in files.
func memoryOf(pid int) api.Bytes {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	var total api.Bytes
	for line := range bytes.Lines(content) {
		name, rest, _ := strings.Cut(string(line), ":")
		if name != "Pss_Anon" && name != "Pss_Shmem" && name != "SwapPss" {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64); err == nil {
			total += api.Bytes(n) * api.KiB
		}
	}
	return total
}
