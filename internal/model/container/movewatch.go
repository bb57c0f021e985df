package container

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"polder/internal/model"
)

// localtime is the link that systemd watches for a change of the time zone, a user's systemd too.
const localtime = "etc/localtime"

// watchable is what may be watched under a name.
type watchable struct {
	device uint64
	link   uint64 // its inode; 0: it is no link
	target uint64 // the inode that it leads to; 0: none
}

// localtimeOf looks at the VE's /etc/localtime.
func localtimeOf(first int) (w watchable) {
	t, err := openTree(fmt.Sprintf("/proc/%d/root", first))
	if err != nil {
		return w
	}
	defer t.Close()
	link, mode := t.inode(localtime, unix.O_NOFOLLOW)
	if mode != unix.S_IFLNK {
		return w
	}
	w.device, w.link = rootDevice(first), link
	w.target, _ = t.inode(localtime, 0)
	return w
}

// inode is the number and type of what is at name, or zeros.
func (t tree) inode(name string, flags int) (number uint64, mode uint32) {
	file, err := t.open(name, unix.O_PATH|flags)
	if err != nil {
		return 0, 0
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return 0, 0
	}
	return st.Ino, st.Mode & unix.S_IFMT
}

// watchedLink finds a watch that can't be set anew: CRIU follows the link, and it leads nowhere.
func (s *survey) watchedLink() {
	at := localtimeOf(s.first)
	if at.link == 0 || at.target != 0 {
		return
	}
	for _, pid := range s.ours {
		for _, w := range watchesOf(pid, at.device, at.link) {
			s.add(pid, fmt.Sprintf("fd %d (inotify of /%s)", w.fd, localtime), "a watch of a symbolic link that leads nowhere can't be carried",
				"let the link lead to a file, or remove it: rm /"+localtime)
		}
	}
}

// watchedLinks are links that processes may watch, by inode. CRIU finds no path for them where it opens files by their handles,
// since it follows what it has opened.
func watchedLinks(first int) map[uint64]string {
	if at := localtimeOf(first); at.link != 0 {
		return map[uint64]string{at.link: "/" + localtime}
	}
	return nil
}

// rewatchLink has processes that were restored, and still stand still, watch the link /etc/localtime again: CRIU has followed it,
// so that they watch the zone's file.
func rewatchLink(ve model.Spec, first int) error {
	at := localtimeOf(first)
	if at.target == 0 {
		return nil
	}
	t, err := openTree(fmt.Sprintf("/proc/%d/root", first))
	if err != nil {
		return err
	}
	defer t.Close()
	link, err := t.open(localtime, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer link.Close()
	pids, err := pidsOf(ve)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		for _, w := range watchesOf(pid, at.device, at.target) {
			if err := w.turn(link); err != nil {
				return fmt.Errorf("process %d's watch of /%s: %w", pid, localtime, err)
			}
		}
	}
	return nil
}

// watch is one of a process's.
type watch struct {
	pid, fd      int
	number, mask uint32
}

// watchesOf are the watches that a process has of a file (proc_pid_fdinfo(5)), on a device as rootDevice says.
func watchesOf(pid int, device, inode uint64) []watch {
	var all []watch
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	for _, entry := range fds {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, entry.Name()))
		if err != nil || target != "anon_inode:inotify" {
			continue
		}
		lines, _ := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, entry.Name()))
		for line := range bytes.Lines(lines) {
			w := watch{pid: pid}
			var i, d uint64
			if n, _ := fmt.Sscanf(string(line), "inotify wd:%x ino:%x sdev:%x mask:%x ", &w.number, &i, &d, &w.mask); n != 4 || i != inode || d != device {
				continue
			}
			if _, err := fmt.Sscan(entry.Name(), &w.fd); err == nil {
				all = append(all, w)
			}
		}
	}
	return all
}

// rootDevice is the device of the file system that is a process's root, as the kernel counts (MKDEV in linux/kdev_t.h). What stat
// says of a file is another one where a file system has several, as btrfs for its subvolumes.
func rootDevice(pid int) (device uint64) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(content) {
		var id, parent int
		var major, minor uint64
		var root, where string
		if n, _ := fmt.Sscan(string(bytes.Replace(line, []byte(":"), []byte(" "), 1)), &id, &parent, &major, &minor, &root, &where); n == 6 && where == "/" {
			device = major<<20 | minor // of several the last one is seen
		}
	}
	return device
}

// setNextWatch has the next watch of an inotify get a number (INOTIFY_IOC_SETNEXTWD in linux/inotify.h).
const setNextWatch = 0x40044900

// turn makes it a watch of another file, under the same number, without its process, which stands still, being told. Events that it
// has not read are lost, as in every restore.
func (w watch) turn(to *os.File) error {
	process, err := unix.PidfdOpen(w.pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, w.fd, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyRmWatch(fd, w.number); err != nil {
		return err
	}
	if err := readUntilIgnored(fd, w.number); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, setNextWatch, int(w.number)); err != nil {
		return fmt.Errorf("choose its number: %w", err)
	}
	// By this path, a link that is open as a path is not followed.
	_, err = unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", to.Fd()), w.mask)
	return err
}

// readUntilIgnored reads events up to the one that says that a watch has ended.
func readUntilIgnored(fd int, number uint32) error {
	events := make([]byte, 16<<10)
	for {
		n, err := unix.Read(fd, events)
		if err != nil {
			return err
		}
		for rest := events[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			wd, mask, name := binary.NativeEndian.Uint32(rest), binary.NativeEndian.Uint32(rest[4:]), binary.NativeEndian.Uint32(rest[12:])
			if wd == number && mask&unix.IN_IGNORED != 0 {
				return nil
			}
			rest = rest[unix.SizeofInotifyEvent+name:]
		}
	}
}
