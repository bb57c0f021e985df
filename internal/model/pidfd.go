package model

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

// Watch follows one process, a child of the daemon or not, until it ends. It costs a descriptor and a parked goroutine,
// no thread: the descriptor is a pidfd that the runtime's poller waits for. Safe for concurrent use.
type Watch struct {
	PID int
	// StartTime of the process in clock ticks since boot, as in /proc/PID/stat: with the PID it names the process for
	// as long as the machine is up.
	StartTime uint64
	// Exited receives one ExitStatus when the process has ended and is closed then; after Close it is closed without.
	Exited <-chan ExitStatus

	file *os.File
	once sync.Once
}

// ExitStatus is how a process ended.
type ExitStatus struct {
	// Known is false when nobody could tell: the process was another's child, and the kernel is older than 6.15 and its
	// parent was faster than us.
	Known  bool
	Code   int            // exit code, when it ended by itself
	Signal syscall.Signal // 0, or what killed it
}

// String says it for people: "exit status 1", "killed by signal 9".
func (s ExitStatus) String() string {
	switch {
	case !s.Known:
		return "ended, exit status unknown"
	case s.Signal != 0:
		return fmt.Sprintf("killed by signal %d", int(s.Signal))
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

// reapWait is how long the end of a process may come before its reaping, which is when the kernel tells its status.
const reapWait = time.Second

// WatchPID begins to follow a process. One that is not there, or is a zombie, is api.NotFound. A child of the caller is
// reaped when it ends, so nobody else may wait for it.
func WatchPID(pid int) (*Watch, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, api.Errorf(api.NotFound, "watch process %d: %w", pid, err)
	} else if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	// Non-blocking, so os.NewFile hands it to the runtime's poller.
	file := os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid))
	stat, err := readStat(pid)
	if err == nil && !stat.dead() {
		// The process is alive after we read, so the pid was not another's while we did.
		err = unix.PidfdSendSignal(fd, 0, nil, 0)
	}
	if err != nil || stat.dead() {
		_ = file.Close()
		return nil, api.Errorf(api.NotFound, "watch process %d: it has ended", pid)
	}
	exited := make(chan ExitStatus, 1)
	w := &Watch{PID: pid, StartTime: stat.start, Exited: exited, file: file}
	go func() {
		defer close(exited)
		defer w.Close()
		if status, ok := w.wait(); ok {
			exited <- status
		}
	}()
	return w, nil
}

// StartTime of a process that runs, as in Watch.StartTime. One that is not there, or is a zombie, is api.NotFound.
func StartTime(pid int) (uint64, error) {
	stat, err := readStat(pid)
	if err != nil || stat.dead() {
		return 0, api.Errorf(api.NotFound, "process %d is not there", pid)
	}
	return stat.start, nil
}

// Close stops following; the process is not touched.
func (w *Watch) Close() { w.once.Do(func() { _ = w.file.Close() }) }

// Signal sends a signal to the process, never to another that got its pid. One that has ended is no error.
func (w *Watch) Signal(sig syscall.Signal) error {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: %w", w.PID, err)
	}
	// Control itself only fails when the file is closed: the process has ended, or we were told to leave it alone.
	_ = conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", w.PID, err)
	}
	return nil
}

// wait blocks until the process has ended; ok is false when the watch was closed before.
func (w *Watch) wait() (status ExitStatus, ok bool) {
	if !w.poll(unix.POLLIN, &status) {
		return status, false
	}
	if !status.Known {
		// Ended, not reaped yet by its parent: the kernel tells the status a moment later.
		_ = w.file.SetReadDeadline(time.Now().Add(reapWait))
		w.poll(unix.POLLHUP, &status)
	}
	return status, true
}

// poll parks until the pidfd shows one of events or an exit status can be had.
func (w *Watch) poll(events int16, status *ExitStatus) bool {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return false
	}
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
			return false
		}
		*status = w.status(int(fd))
		return status.Known || fds[0].Revents&events != 0
	})
	return err == nil
}

// status of a process that has ended, from whoever knows: ourselves as its parent, the kernel (6.15 and later, once it is
// reaped), or the zombie that it still is.
func (w *Watch) status(fd int) ExitStatus {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PIDFD, fd, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err == nil && info.Signo == int32(unix.SIGCHLD) {
		var ws unix.WaitStatus
		if pid, err := unix.Wait4(w.PID, &ws, unix.WNOHANG, nil); err == nil && pid == w.PID {
			return exitStatus(ws)
		}
	}
	ioctl := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(fd, &ioctl); err == nil && ioctl.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return exitStatus(unix.WaitStatus(ioctl.Exit_code))
	}
	if stat, err := readStat(w.PID); err == nil && stat.dead() && stat.start == w.StartTime {
		return exitStatus(unix.WaitStatus(stat.exit))
	}
	return ExitStatus{}
}

func exitStatus(ws unix.WaitStatus) ExitStatus {
	if ws.Signaled() {
		return ExitStatus{Known: true, Signal: ws.Signal()}
	}
	return ExitStatus{Known: true, Code: ws.ExitStatus()}
}

// procStat is what we want of /proc/PID/stat; proc_pid_stat(5) has the fields.
type procStat struct {
	state byte
	start uint64
	exit  uint32
}

func (s procStat) dead() bool { return s.state == 'Z' || s.state == 'X' }

func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(data)
}

func parseStat(data []byte) (procStat, error) {
	// The name, field 2, may hold anything, also ") ": the last parenthesis ends it. The state is field 3.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 50 || len(fields[0]) != 1 {
		return procStat{}, fmt.Errorf("/proc/PID/stat has %d fields after the name, want 50", len(fields))
	}
	start, err := strconv.ParseUint(string(fields[22-3]), 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("start time in /proc/PID/stat: %w", err)
	}
	exit, err := strconv.ParseUint(string(fields[52-3]), 10, 32)
	if err != nil {
		return procStat{}, fmt.Errorf("exit code in /proc/PID/stat: %w", err)
	}
	return procStat{state: fields[0][0], start: start, exit: uint32(exit)}, nil
}
