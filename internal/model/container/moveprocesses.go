package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"polder/internal/model"
)

// pidsOf are the VE's processes, as the host numbers them, wherever in its control groups they are.
func pidsOf(ve model.Spec) ([]int, error) {
	var pids []int
	top := string(cgroupOf(ve))
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err != nil && path != top && errors.Is(err, fs.ErrNotExist) {
			return nil // the VE has removed it
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		switch {
		case path != top && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)):
			return nil
		case errors.Is(err, syscall.EOPNOTSUPP): // a group of threads: the one above has their processes
			return nil
		}
		for _, word := range strings.Fields(string(content)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return err
	})
	return pids, err
}

// openFiles are CRIU's names, "file[mount:inode]", of what is open in the VE and is the file of info.
func openFiles(ve model.Spec, info fs.FileInfo) ([]string, error) {
	pids, err := pidsOf(ve)
	if err != nil {
		return nil, err
	}
	want, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, nil
	}
	var names []string
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			var st syscall.Stat_t
			if syscall.Stat(filepath.Join(dir, fd.Name()), &st) != nil || st.Ino != want.Ino || st.Dev != want.Dev {
				continue
			}
			if mount, ok := mountOf(pid, fd.Name()); ok {
				names = append(names, fmt.Sprintf("file[%x:%x]", mount, st.Ino))
			}
		}
	}
	return names, nil
}

// mountOf is the id of the mount that a descriptor was opened on.
func mountOf(pid int, fd string) (id int, ok bool) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(content)) {
		if value, found := strings.CutPrefix(line, "mnt_id:"); found {
			id, err = strconv.Atoi(strings.TrimSpace(value))
			return id, err == nil
		}
	}
	return 0, false
}
