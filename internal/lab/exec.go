package lab

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"polder/api"
	"polder/internal/command"
)

// forwarded are the signals that Exec hands on to the command.
var forwarded = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
}

// Exec runs a command in a host, as root and with the standard files given, and returns its exit code (128 + the number
// of the signal that killed it). It blocks until the command ends. Signals that this process gets are handed on; ctx
// kills the command.
func (l *Lab) Exec(ctx context.Context, name string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	if _, err := l.number(name); err != nil {
		return 0, err
	}
	pid := l.initPID(name)
	if pid == 0 {
		return 0, api.Errorf(api.Precondition, "lab host %s is not running; start it with: polder lab start %s", name, name)
	}
	if len(argv) == 0 {
		return 0, api.Errorf(api.Invalid, "run in lab host %s: no command", name)
	}
	r, err := l.readRecord()
	if err != nil {
		return 0, err
	}
	return l.backend(r).exec(ctx, name, pid, argv, stdin, stdout, stderr)
}

func (b namespaces) exec(ctx context.Context, name string, pid int, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	nsenter, err := command.Find("nsenter")
	if err != nil {
		return 0, err
	}
	dir, err := b.l.cgroup(name, initLeaf)
	if err != nil {
		return 0, err
	}
	cgroup, err := os.Open(dir)
	if err != nil {
		return 0, api.Errorf(api.Unavailable, "run in lab host %s: %w", name, err)
	}
	defer cgroup.Close()
	args := append([]string{
		"--target", strconv.Itoa(pid), "--mount", "--root", "--wd", "--",
	}, argv...)
	cmd := exec.CommandContext(ctx, nsenter, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.Env = execEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	err = startIn(cmd, pid)
	if err != nil {
		return 0, api.Errorf(api.Unavailable, "run in lab host %s: %w", name, err)
	}
	return wait(cmd, name)
}

// execEnv is the environment of a command in a host.
func execEnv() []string {
	return []string{"PATH=" + hostPath, "HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM")}
}

// startIn starts cmd in the namespaces of pid, all but that of mounts, which takes a process of one thread: nsenter. In the
// pid namespace from the start, its process is the command itself and gets our signals.
func startIn(cmd *exec.Cmd, pid int) error {
	started := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine. Other processes must not start in those namespaces.
		runtime.LockOSThread()
		fd, err := unix.PidfdOpen(pid, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWPID|unix.CLONE_NEWCGROUP|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC)
			unix.Close(fd)
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// wait hands signals on until the command ends. What a terminal sends, the command gets from the terminal.
func wait(cmd *exec.Cmd, name string) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	f, ok := cmd.Stdin.(*os.File)
	terminal := ok && term.IsTerminal(int(f.Fd()))
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if !terminal || s != syscall.SIGINT && s != syscall.SIGQUIT {
				_ = cmd.Process.Signal(s)
			}
		case err := <-done:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, api.Errorf(api.Internal, "run in lab host %s: %w", name, err)
			}
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if status.Signaled() {
				return 128 + int(status.Signal()), nil
			}
			return status.ExitStatus(), nil
		}
	}
}
