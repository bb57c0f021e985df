package crun

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"polder/internal/command"
)

// Exec is one more process in a running container.
type Exec struct {
	ID      string
	Process *specs.Process
	// Dir is an empty directory of the call's own, for the files that crun and its client exchange.
	Dir string
	// Stdin may be nil: empty. Without a terminal, Stdout and Stderr get the output; with one, ConsoleSocket gets the
	// terminal's descriptor (see Console).
	Stdin          *os.File
	Stdout, Stderr io.Writer
	ConsoleSocket  string
}

// outputWait is how long output is waited for after the process has ended: what it left running may hold it open for ever.
const outputWait = 250 * time.Millisecond

// Exec runs the process and blocks until it has ended. The exit code is 128 + n when signal n killed it, 127 when there is
// no such command, 126 when it cannot be run. When ctx ends first, the process and its group are killed. An error says
// that the process did not run, or ctx's cause.
func (r Runtime) Exec(ctx context.Context, e Exec) (exitCode int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	path, err := command.Find("crun")
	if err != nil {
		return 0, err
	}
	content, err := json.Marshal(e.Process)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(e.file("process"), content, 0o600); err != nil {
		return 0, err
	}
	args := []string{"--root=" + r.Root, "--cgroup-manager=cgroupfs", "--log=" + e.file("log"), "exec", "--process=" + e.file("process"), "--pid-file=" + e.file("pid")}
	if e.ConsoleSocket != "" {
		args = append(args, "--console-socket="+e.ConsoleSocket)
	}
	cmd := exec.CommandContext(ctx, path, append(args, e.ID)...)
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if e.Stdin == nil {
		if e.Stdin, err = noInput(); err != nil {
			return 0, err
		}
		defer e.Stdin.Close()
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.Stdin, piped(e.Stdout), piped(e.Stderr)
	cmd.WaitDelay = outputWait // and as long for crun, after a cancel
	// crun goes with its child: killed before it has waited for it, it would leave a zombie to the host's init, and
	// while there is a zombie the container cannot end.
	cmd.Cancel = func() error {
		e.kill()
		return nil
	}
	err = cmd.Run()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return e.outcome(cmd, err)
}

// piped makes os/exec put a pipe in front of any writer: a file would be given to the container's root user by crun, and
// nothing at all would be the host's /dev/null.
func piped(w io.Writer) io.Writer {
	if w == nil {
		w = io.Discard
	}
	return struct{ io.Writer }{w}
}

// outcome tells the process's exit code from a failure of crun.
func (e Exec) outcome(cmd *exec.Cmd, err error) (int, error) {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	text, _ := os.ReadFile(e.file("log"))
	if len(text) == 0 || err == nil {
		return cmd.ProcessState.ExitCode(), nil
	}
	message := string(text)
	for _, known := range []struct {
		text string
		code int
	}{
		{"No such file or directory", 127},
		{"not found in $PATH", 127},
		{"Permission denied", 126},
		{"Exec format error", 126},
		{"it is not executable", 126},
		{"is not a regular file", 126},
	} {
		if strings.Contains(message, known.text) {
			return known.code, nil // crun has said it on its standard error, which is the command's
		}
	}
	return 0, failure(cmd, text, err)
}

// pidWait is how long crun may take from its start to the process's.
const pidWait = 2 * time.Second

// kill kills the process with its group, also one that crun is only just starting.
func (e Exec) kill() {
	for deadline := time.Now().Add(pidWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if pid, ok := e.PID(); ok {
			// crun makes it the leader of a session. It is crun's child, so its pid is not another's before crun has waited.
			_ = syscall.Kill(-pid, syscall.SIGKILL)
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return
		}
		if info, err := os.Stat(e.file("log")); err == nil && info.Size() > 0 {
			return // it failed
		}
	}
}

// PID of the process, once it runs.
func (e Exec) PID() (pid int, ok bool) {
	text, err := os.ReadFile(e.file("pid"))
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return pid, err == nil && pid > 1
}

// Signal sends a signal to the process; it waits a moment for one that is only just starting.
func (e Exec) Signal(ctx context.Context, signal syscall.Signal) {
	for deadline := time.Now().Add(pidWait); ctx.Err() == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if pid, ok := e.PID(); ok {
			_ = syscall.Kill(pid, signal)
			return
		}
	}
}

func (e Exec) file(name string) string { return filepath.Join(e.Dir, name) }
