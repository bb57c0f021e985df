package container

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// Blockers looks at every process of the VE for what CRIU can't carry. What it does not know is found by the dump, with the VE
// kept at the source.
func (m *Model) Blockers(ctx context.Context, ve model.Spec) ([]api.Blocker, error) {
	w, ok := m.running(ve)
	if !ok {
		return nil, api.Errorf(api.Precondition, "blockers of container %q: ve is not running: start it first", ve.Name)
	}
	defer w.Close()
	pids, err := pidsOf(ve)
	if err != nil {
		return nil, api.Errorf(api.KindOf(err), "blockers of container %q: %w", ve.Name, err)
	}
	s := survey{first: w.PID, ours: pids, own: namespacesOf(w.PID), seen: map[string]bool{}, mounted: mountIDs(pids)}
	if s.outside, err = openLogs(ve); err != nil {
		return nil, api.Errorf(api.KindOf(err), "blockers of container %q: %w", ve.Name, err)
	}
	s.mounts(w.PID)
	s.watchedLink()
	if len(ve.NICs) > 1 {
		s.add(0, "network interfaces", "a container with several can't be moved while it runs", "")
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.process(pid)
	}
	return s.found, nil
}

// survey collects what blocks a move.
type survey struct {
	first int
	ours  []int
	own   map[string]string
	seen  map[string]bool
	found []api.Blocker

	mounted map[int]bool // the mounts of all namespaces of the VE, by id
	outside []string     // CRIU's names of open files that are handed in from outside
}

// add notes a blocker, once for a process and descriptor; pid 0: it is the whole VE's.
func (s *survey) add(pid int, descriptor, reason, remedy string) {
	b := api.Blocker{PID: pid, Descriptor: descriptor, Reason: reason, Remedy: remedy, Except: api.Cold}
	if pid > 0 {
		b.Process = commandOf(pid)
	}
	key := fmt.Sprint(pid, "\x00", descriptor, "\x00", reason)
	if !s.seen[key] {
		s.seen[key] = true
		s.found = append(s.found, b)
	}
}

func commandOf(pid int) string {
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(comm))
}

// carriedNamespaces are those of which a process may have others than the VE's first one.
var carriedNamespaces = []string{"mnt", "net"}

var namespaceKinds = []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}

func namespacesOf(pid int) map[string]string {
	all := map[string]string{}
	for _, kind := range namespaceKinds {
		if id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			all[kind] = id
		}
	}
	return all
}

func (s *survey) process(pid int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || statusField(status, "State") == "" || strings.HasPrefix(statusField(status, "State"), "Z") {
		return // ended meanwhile
	}
	parent, _ := strconv.Atoi(statusField(status, "PPid"))
	if pid != s.first && !slices.Contains(s.ours, parent) {
		s.add(pid, "", "it was started from outside (polder exec or console), and ends with that connection", "let it end, or kill it; start it as a service to have it moved")
		return
	}
	if tracer, _ := strconv.Atoi(statusField(status, "TracerPid")); tracer > 0 {
		s.add(pid, "", fmt.Sprintf("process %d traces it (ptrace)", tracer), "end the debugger or strace")
	}
	for kind, id := range namespacesOf(pid) {
		if id != s.own[kind] && !slices.Contains(carriedNamespaces, kind) {
			s.add(pid, "", "it has a namespace of its own: "+id, "stop it: containers and sandboxes inside of a container can't be moved while they run")
		}
	}
	if s.own["mnt"] != namespacesOf(pid)["mnt"] {
		s.mounts(pid)
	}
	s.maps(pid)
	s.descriptors(pid)
}

// statusField is the value of a line of /proc/PID/status.
func statusField(status []byte, name string) string {
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return strings.TrimSpace(string(value))
		}
	}
	return ""
}

// foreignFilesystems keep their state elsewhere: in a process, a server or a device.
var foreignFilesystems = []string{"fuse", "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "afs", "binder"}

func (s *survey) mounts(pid int) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(content)) {
		where, kind, ok := mountLine(line)
		family, _, _ := strings.Cut(kind, ".")
		if ok && family != "fusectl" && slices.Contains(foreignFilesystems, family) {
			s.add(pid, "mount "+where, "a file system of type "+kind+" can't be carried", "umount "+where)
		}
	}
}

// mountLine takes the mount point and the file system's type from a line of mountinfo (proc_pid_mountinfo(5)).
func mountLine(line string) (where, kind string, ok bool) {
	before, after, found := strings.Cut(line, " - ")
	head, tail := strings.Fields(before), strings.Fields(after)
	if !found || len(head) < 6 || len(tail) < 1 {
		return "", "", false
	}
	return head[4], tail[0], true
}

// maps looks for devices in a process's memory.
func (s *survey) maps(pid int) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 6 {
			continue
		}
		switch path := fields[5]; {
		case strings.HasPrefix(path, "/dev/") && !strings.HasPrefix(path, "/dev/zero") && !strings.HasPrefix(path, "/dev/shm/"):
			s.add(pid, "memory of "+path, "a device that is mapped can't be carried", "stop the process")
		case strings.HasPrefix(path, "anon_inode:") && !strings.HasPrefix(path, "anon_inode:[aio]"):
			s.add(pid, "memory of "+path, "it can't be carried", "stop the process")
		}
	}
}

// anonymous are the kernel's objects behind descriptors that CRIU carries; all others it can't.
var anonymous = []string{"[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "[pidfd]", "inotify", "[fanotify]"}

// carriedSockets are the protocols that CRIU carries, as the kernel names them.
var carriedSockets = []string{"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "UNIX", "UNIX-STREAM", "NETLINK", "PACKET", "RAW", "RAWv6", "PING", "PINGv6"}

func (s *survey) descriptors(pid int) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, fd := range fds {
		path := filepath.Join(dir, fd.Name())
		target, err := os.Readlink(path)
		if err != nil {
			continue // closed meanwhile
		}
		reason, remedy := descriptorBlocks(path, target)
		if reason == "" && s.unmounted(pid, fd.Name(), target) {
			reason = "it was opened on a mount that is gone since, as a service's own are when it has restarted"
			remedy = "restart the process, or end its session and log in again"
		}
		if reason != "" {
			s.add(pid, "fd "+fd.Name()+" ("+target+")", reason, remedy)
		}
	}
}

// unmounted says whether a file is open on a mount that no process of the VE has any more.
func (s *survey) unmounted(pid int, fd, target string) bool {
	if !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/memfd:") {
		return false
	}
	mount, ok := mountOf(pid, fd)
	if !ok || s.mounted[mount] || mountIDs([]int{pid})[mount] { // it may have a new namespace
		return false
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%s", pid, fd), &st); err != nil {
		return false // closed meanwhile
	}
	return !slices.Contains(s.outside, fmt.Sprintf("file[%x:%x]", mount, st.Ino))
}

// mountIDs are those of all mount namespaces of the processes.
func mountIDs(pids []int) map[int]bool {
	ids, spaces := map[int]bool{}, map[string]bool{}
	for _, pid := range pids {
		space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || spaces[space] {
			continue
		}
		spaces[space] = true
		content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		for line := range bytes.Lines(content) {
			id, _, _ := bytes.Cut(line, []byte(" "))
			if n, err := strconv.Atoi(string(id)); err == nil {
				ids[n] = true
			}
		}
	}
	return ids
}

// descriptorBlocks says why a descriptor, open at path in /proc, can't be carried; "": it can.
func descriptorBlocks(path, target string) (reason, remedy string) {
	if kind, ok := strings.CutPrefix(target, "anon_inode:"); ok {
		if slices.Contains(anonymous, kind) || slices.Contains(anonymous, "["+kind+"]") {
			return "", ""
		}
		return "the kernel's " + strings.Trim(kind, "[]") + " can't be carried", "stop the process, or set it up to do without"
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", ""
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return socketBlocks(path)
	case unix.S_IFCHR:
		return deviceBlocks(st.Rdev)
	case unix.S_IFBLK:
		return "a block device can't be carried", "close it"
	case unix.S_IFREG:
		return fileBlocks(target, st)
	}
	return "", ""
}

func socketBlocks(path string) (reason, remedy string) {
	name := make([]byte, 64)
	n, err := unix.Getxattr(path, "system.sockprotoname", name)
	if err != nil || n <= 0 {
		return "", "" // the kernel does not say
	}
	protocol := string(bytes.TrimRight(name[:n], "\x00"))
	switch {
	case slices.Contains(carriedSockets, protocol):
		return "", ""
	case strings.HasPrefix(protocol, "MPTCP"):
		return "a multipath TCP socket can't be carried", "set the program up for plain TCP (for Go programs: GODEBUG=multipathtcp=0)"
	}
	return "a socket of protocol " + protocol + " can't be carried", "close it"
}

// Majors of character devices (Documentation/admin-guide/devices.txt) that hold no state, or state that CRIU carries.
const (
	majorMemory   = 1 // null, zero, full, random, urandom
	majorTTY      = 5 // tty, console, ptmx
	majorMisc     = 10
	minorTun      = 200
	majorPTYFirst = 136
	majorPTYLast  = 143
)

func deviceBlocks(device uint64) (reason, remedy string) {
	major, minor := unix.Major(device), unix.Minor(device)
	switch {
	case major == majorMemory, major == majorTTY, major >= majorPTYFirst && major <= majorPTYLast, major == majorMisc && minor == minorTun:
		return "", ""
	}
	return fmt.Sprintf("the device %d:%d can't be carried", major, minor), "close it"
}

func fileBlocks(target string, st unix.Stat_t) (reason, remedy string) {
	if !strings.HasSuffix(target, " (deleted)") || strings.HasPrefix(target, "/memfd:") {
		return "", ""
	}
	switch {
	case st.Nlink > 0:
		return "a file that was removed under this name, but has another one, can't be carried", "restart the process, so that it opens the file anew"
	case st.Blocks*512 > ghostLimit:
		return fmt.Sprintf("a file that was removed while open goes along only up to %s", api.Bytes(ghostLimit)), "restart the process, so that it lets go of the file"
	}
	return "", ""
}
