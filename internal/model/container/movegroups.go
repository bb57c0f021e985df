package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// group is one control group of a VE's tree, as it was at the source.
type group struct {
	Path string `json:"path"` // below the VE's own; "." for that
	// Owners of the directory (".") and of those of its files that do not belong to the VE's root, as ids inside the VE.
	Owners map[string][2]uint32 `json:"owners,omitempty"`
	// Values of its settings. Those that are the kernel's default do no harm.
	Values map[string]string `json:"values,omitempty"`
	// Controllers that it hands down.
	Controllers []string `json:"controllers,omitempty"`
}

// groupLimit is how many groups a VE may have for a move.
const moveGroupLimit = 10000

// carried are the settings of groups that go along; all else in a group is a reading.
var carried = []string{
	"cgroup.max.depth", "cgroup.max.descendants", "cpu.idle", "cpu.max", "cpu.max.burst", "cpu.uclamp.max", "cpu.uclamp.min",
	"cpu.weight", "cpuset.cpus", "cpuset.mems", "io.weight", "memory.high", "memory.low", "memory.max", "memory.min",
	"memory.oom.group", "memory.swap.high", "memory.swap.max", "memory.zswap.max", "memory.zswap.writeback", "pids.max",
}

// groupsOf reads a VE's tree of groups, parents first.
func groupsOf(ve model.Spec) ([]group, error) {
	var all []group
	top := string(cgroupOf(ve))
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if len(all) == moveGroupLimit {
			return api.Errorf(api.Unsupported, "it has more than %d control groups", moveGroupLimit)
		}
		g, err := readGroup(ve, path)
		if g.Path, _ = filepath.Rel(top, path); err == nil {
			all = append(all, g)
		}
		return err
	})
	return all, err
}

func readGroup(ve model.Spec, dir string) (group, error) {
	g := group{Owners: map[string][2]uint32{}, Values: map[string]string{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return g, err
	}
	names := []string{"."}
	for _, entry := range entries {
		if !entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			return g, fmt.Errorf("control group %s: %w", dir, err)
		}
		uid, gid := st.Uid-ve.IDBase, st.Gid-ve.IDBase
		// What the host's root owns is not in the VE's range, and stays as it is made.
		if (uid != 0 || gid != 0) && uid < ve.IDCount && gid < ve.IDCount {
			g.Owners[name] = [2]uint32{uid, gid}
		}
		if slices.Contains(carried, name) && dir != string(cgroupOf(ve)) {
			if content, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				g.Values[name] = strings.TrimSpace(string(content))
			}
		}
	}
	down, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	g.Controllers = strings.Fields(string(down))
	return g, err
}

// delegated are the files of the VE's own group that belong to its root user, as crun has it (cgroups(7), "delegation").
var delegated = []string{".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}

// makeGroups makes a VE's tree of groups: with its limits, but without handing controllers down, which has to wait until there is
// no process in the VE's own group any more (see handDownGroups).
func makeGroups(ve model.Spec, limits limits, all []group) error {
	top := string(cgroupOf(ve))
	if err := os.MkdirAll(top, 0o755); err != nil {
		return err
	}
	if err := setLimits(ve, limits); err != nil {
		return err
	}
	if ve.App == nil {
		for _, name := range delegated {
			if err := os.Lchown(filepath.Join(top, name), int(ve.IDBase), int(ve.IDBase)); err != nil {
				return err
			}
		}
	}
	return asRootOf(ve.IDBase, func() error {
		for _, g := range all {
			if g.Path == "." {
				continue
			}
			if !filepath.IsLocal(g.Path) {
				return api.Errorf(api.Invalid, "control group %q", g.Path)
			}
			if err := os.Mkdir(filepath.Join(top, g.Path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make control group: %w", err)
			}
		}
		return nil
	})
}

func setLimits(ve model.Spec, limits limits) error {
	r := resources(ve, limits)
	var failed error
	if r.Memory != nil {
		failed = errors.Join(failed, cgroupOf(ve).set("memory.max", fmt.Sprint(*r.Memory.Limit)))
	}
	if r.CPU != nil {
		failed = errors.Join(failed, cgroupOf(ve).set("cpu.max", fmt.Sprintf("%d %d", *r.CPU.Quota, *r.CPU.Period)))
	}
	if r.Pids != nil {
		failed = errors.Join(failed, cgroupOf(ve).set("pids.max", fmt.Sprint(*r.Pids.Limit)))
	}
	return failed
}

// handDownGroups hands the controllers down, gives groups and files to their owners, and sets what was set: parents first, since
// files appear with their controller.
func handDownGroups(ve model.Spec, all []group) error {
	top := string(cgroupOf(ve))
	for _, g := range all {
		dir := filepath.Join(top, g.Path)
		for name, value := range g.Values {
			if !slices.Contains(carried, name) {
				return api.Errorf(api.Invalid, "setting %q of control group %q", name, g.Path)
			}
			// A setting that this kernel has not, or says otherwise: the VE runs without it.
			_ = os.WriteFile(filepath.Join(dir, name), []byte(value), 0)
		}
		err := asRootOf(ve.IDBase, func() error {
			for _, controller := range g.Controllers {
				err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0)
				if err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EINVAL) {
					return fmt.Errorf("hand %s down in %s: %w", controller, g.Path, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for name, owner := range g.Owners {
			if name != "." && !isFileName(name) || owner[0] >= ve.IDCount || owner[1] >= ve.IDCount {
				return api.Errorf(api.Invalid, "owner of %q in control group %q", name, g.Path)
			}
			err := os.Lchown(filepath.Join(dir, name), int(ve.IDBase+owner[0]), int(ve.IDBase+owner[1]))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func isFileName(name string) bool {
	return name != "" && name != ".." && !strings.ContainsAny(name, "/\x00")
}
