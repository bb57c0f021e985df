package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// remoteCall has another process make one system call. Its main thread is stopped for that, some tens of microseconds, and then goes on
// where it was: a call that this broke into is begun again by the kernel, as after a signal that nobody heeds.
func remoteCall(pid int, number uint64, args [6]uint64) (result uint64, err error) {
	instruction, err := syscallInstruction(pid)
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return 0, fmt.Errorf("trace process %d: %w", pid, err)
	}
	defer func() {
		if e := unix.PtraceDetach(pid); err == nil && e != nil {
			err = fmt.Errorf("leave process %d: %w", pid, e)
		}
	}()
	if err := unix.PtraceInterrupt(pid); err != nil {
		return 0, err
	}
	if err := awaitStop(pid, unix.PtraceCont); err != nil {
		return 0, err
	}
	var before unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &before); err != nil {
		return 0, err
	}
	call := before
	call.Rip, call.Rax, call.Orig_rax = instruction, number, ^uint64(0) // no call is to be begun again now
	call.Rdi, call.Rsi, call.Rdx, call.R10, call.R8, call.R9 = args[0], args[1], args[2], args[3], args[4], args[5]
	if err := unix.PtraceSetRegs(pid, &call); err != nil {
		return 0, err
	}
	for range 2 { // it stops where it enters the call, and where it leaves
		if err := unix.PtraceSyscall(pid, 0); err != nil {
			return 0, err
		}
		if err := awaitStop(pid, unix.PtraceSyscall); err != nil {
			return 0, err
		}
	}
	if err := unix.PtraceGetRegs(pid, &call); err != nil {
		return 0, err
	}
	if err := unix.PtraceSetRegs(pid, &before); err != nil {
		return 0, err
	}
	// From a stop of this kind, unlike from the end of a call, the kernel begins anew what it broke into.
	if err := unix.PtraceInterrupt(pid); err != nil {
		return 0, err
	}
	if err := unix.PtraceCont(pid, 0); err != nil {
		return 0, err
	}
	if err := awaitStop(pid, unix.PtraceCont); err != nil {
		return 0, err
	}
	if int64(call.Rax) < 0 && int64(call.Rax) > -4096 {
		return 0, unix.Errno(-int64(call.Rax))
	}
	return call.Rax, nil
}

// awaitStop waits until the traced thread stands still. Signals that come meanwhile are passed on.
func awaitStop(pid int, resume func(pid, signal int) error) error {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case !status.Stopped():
			return fmt.Errorf("process %d has ended: %w", pid, unix.ESRCH)
		case status.StopSignal() == unix.SIGTRAP:
			return nil
		default:
			if err := resume(pid, int(status.StopSignal())); err != nil {
				return err
			}
		}
	}
}

// syscallInstruction finds one that any process has: in the page of code that the kernel gives it (vdso(7)).
func syscallInstruction(pid int) (uint64, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	maps, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		place, _, _ := strings.Cut(line, " ")
		from, to, _ := strings.Cut(place, "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || end-start > 1<<20 {
			break
		}
		mem, err := os.Open(filepath.Join(dir, "mem"))
		if err != nil {
			return 0, err
		}
		defer mem.Close()
		code := make([]byte, end-start)
		if _, err := mem.ReadAt(code, int64(start)); err != nil {
			return 0, err
		}
		if at := bytes.Index(code, []byte{0x0f, 0x05}); at >= 0 {
			return start + uint64(at), nil
		}
	}
	return 0, fmt.Errorf("process %d has no vdso with a system call", pid)
}
