package lab

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

// loopDevice is one that is in use. Loop devices are the machine's: they have no namespace.
type loopDevice struct {
	name          string // loop7
	file          string // what is attached, by the path in the mount namespace that it was found in
	device, inode uint64 // of that file
}

func loopDevices() []loopDevice {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var list []loopDevice
	for _, f := range files {
		d := loopDevice{name: strings.Split(f, "/")[3]}
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		d.file = strings.TrimSuffix(strings.TrimSpace(string(data)), " (deleted)")
		if dev, err := os.Open("/dev/" + d.name); err == nil {
			if info, err := unix.IoctlLoopGetStatus64(int(dev.Fd())); err == nil {
				d.device, d.inode = info.Device, info.Inode
			}
			dev.Close()
		}
		list = append(list, d)
	}
	return list
}

// under says whether the device's file is found by its path in the directory root.
func (d loopDevice) under(root string) bool {
	var st unix.Stat_t
	return unix.Stat(root+d.file, &st) == nil && st.Dev == d.device && st.Ino == d.inode
}

func (d loopDevice) detach() {
	if f, err := os.Open("/dev/" + d.name); err == nil {
		_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		f.Close()
	}
}

// hostLoops are the loop devices of files that only the host with this PID 1 has. They outlive it, and keep its file
// systems from going, unless they are detached.
func hostLoops(pid int) []loopDevice {
	root := "/proc/" + strconv.Itoa(pid) + "/root"
	var list []loopDevice
	for _, d := range loopDevices() {
		if pid > 0 && d.under(root) && !d.under("") {
			list = append(list, d)
		}
	}
	return list
}

// detachOrphans detaches the loop devices whose file no process finds by its path any more: those of hosts that died
// unasked. It does nothing in a pid namespace, where most processes of the machine can't be seen.
func detachOrphans() {
	const initialNamespace = "pid:[4026531836]" // PROC_PID_INIT_INO in linux/proc_ns.h
	if ns, _ := os.Readlink("/proc/self/ns/pid"); ns != initialNamespace {
		return
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/root")
next:
	for _, d := range loopDevices() {
		for _, root := range append(processes, "") {
			if d.under(root) {
				continue next
			}
		}
		d.detach()
	}
}

// waitPools waits until no loop device has the pool of one of the hosts: the kernel lets go of a dead host's mounts by
// and by. The files are known by their inodes, as the mount that a path went through may be gone.
func (l *Lab) waitPools(ctx context.Context, hosts ...int) error {
	for range 1000 {
		left := ""
		for _, d := range loopDevices() {
			for _, n := range hosts {
				var st unix.Stat_t
				if unix.Stat(l.path(nameOf(n), poolFile), &st) == nil && st.Dev == d.device && st.Ino == d.inode {
					d.detach() // with a mount on it, it goes when that does
					left += " /dev/" + d.name
				}
			}
		}
		if left == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return api.Errorf(api.Cancelled, "wait for the end of%s: %w", left, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return api.Errorf(api.Unavailable, "pools of dead hosts are still in use; see: losetup --list, and grep %s /proc/*/mounts", l.dir)
}
