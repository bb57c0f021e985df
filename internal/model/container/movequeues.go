package container

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"polder/internal/model"
)

// unread looks in a VE that is frozen for a socket with messages that come with more than their bytes: who sent them, or when. CRIU
// does not carry such a message ("Control messages in queue, not supported"). Most readers are at it: the journal, whenever something
// is logged, or systemd, when a service tells of itself. "": there is none.
func unread(ve model.Spec) (what string, err error) {
	pids, err := pidsOf(ve)
	if err != nil {
		return "", err
	}
	seen := map[string]bool{}
	for _, pid := range pids {
		if fd, found := unreadOf(pid, seen); found {
			return fmt.Sprintf("process %d (%s) does not read what has come to its socket (fd %d), with its sender's credentials", pid, commandOf(pid), fd), nil
		}
	}
	return "", nil
}

// unreadOf looks at a process's sockets that were not seen yet, by their names.
func unreadOf(pid int, seen map[string]bool) (fd int, found bool) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, false // it has ended
	}
	defer unix.Close(process)
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		target, err := os.Readlink(dir + entry.Name())
		if err != nil || !strings.HasPrefix(target, "socket:") || seen[target] {
			continue
		}
		seen[target] = true
		number, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		socket, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue
		}
		found := holdsControl(socket)
		_ = unix.Close(socket)
		if found {
			return number, true
		}
	}
	return 0, false
}

// controls are the options with which the kernel tells more of a message than its bytes.
var controls = []int{unix.SO_PASSCRED, unix.SO_PASSSEC, unix.SO_PASSPIDFD, unix.SO_TIMESTAMP_OLD, unix.SO_TIMESTAMP_NEW, unix.SO_TIMESTAMPNS_OLD, unix.SO_TIMESTAMPNS_NEW}

// holdsControl says whether a message waits in a local socket that will be told more of it.
func holdsControl(socket int) bool {
	if domain, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_UNIX {
		return false
	}
	if bytes, err := unix.IoctlGetInt(socket, unix.SIOCINQ); err != nil || bytes == 0 {
		return false
	}
	for _, option := range controls {
		if on, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, option); err == nil && on != 0 {
			return true
		}
	}
	return false
}
