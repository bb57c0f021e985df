// Package crun is a client of the OCI runtime crun: it runs the binary and reads the few files it leaves, and nothing
// else. It knows no VEs and has no policy: what to run is in a bundle that the caller has written.
//
// It holds no state; everything is safe for concurrent use. Containers go on when the caller ends: crun has no daemon.
package crun

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"polder/internal/command"
)

// Runtime is crun with its state in one directory.
type Runtime struct {
	// Root is the state directory: absolute, made by crun when missing. It should vanish at reboot, as containers do.
	Root string
}

// limit of one call of crun. Those that take milliseconds must not be cut off by an impatient caller: a create that is
// killed half-way leaves a process that crun's state does not know.
const limit = 20 * time.Second

// stderrSize is how much of crun's own messages an error carries.
const stderrSize = 2 << 10

// Create makes the container id from the bundle directory and returns the pid of its first process, which waits for
// Start. The process's standard input is empty, its output goes to log. A cancelled ctx prevents it but does not cut it
// off.
func (r Runtime) Create(ctx context.Context, id, bundle string, log *os.File) (pid int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	pidFile := filepath.Join(bundle, "pid")
	messages := filepath.Join(bundle, "crun.log")
	for _, old := range []string{pidFile, messages} {
		if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	// The container inherits stderr, so crun must tell its own troubles elsewhere.
	cmd, done, err := r.command(ctx, "--log="+messages, "create", "--bundle="+bundle, "--pid-file="+pidFile, id)
	if err != nil {
		return 0, err
	}
	defer done()
	stdin, err := noInput()
	if err != nil {
		return 0, err
	}
	defer stdin.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, log, log
	if err := mortal(cmd); err != nil {
		text, _ := os.ReadFile(messages)
		return 0, failure(cmd, text, err)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("pid file of container %s: %w", id, err)
	}
	return pid, nil
}

// Start lets the created container's first process go.
func (r Runtime) Start(ctx context.Context, id string) error {
	_, err := r.run(ctx, "start", id)
	return err
}

// Kill sends a signal, by name or number, to the container's first process.
func (r Runtime) Kill(ctx context.Context, id, signal string) error {
	_, err := r.run(ctx, "kill", id, signal)
	return err
}

// Delete kills what still runs of the container and forgets it. One that is not known, or that somebody else deletes at the
// same time, is no error.
func (r Runtime) Delete(ctx context.Context, id string) error {
	if !r.Known(id) {
		return nil
	}
	if _, err := r.run(ctx, "delete", "--force", id); err != nil && r.Known(id) {
		return err
	}
	return nil
}

// State is crun's JSON description of a container (OCI runtime-spec "State").
func (r Runtime) State(ctx context.Context, id string) ([]byte, error) {
	return r.run(ctx, "state", id)
}

// Version is crun's version, such as "1.21".
func (r Runtime) Version(ctx context.Context) (string, error) {
	out, err := command.Run(ctx, nil, "crun", "--version")
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(line, "crun version "), nil
}

// Known says, without running crun, whether there is state of the container.
func (r Runtime) Known(id string) bool {
	_, err := os.Stat(filepath.Join(r.Root, id))
	return err == nil
}

// Waiting says, without running crun, whether a container that is known was created but not started: its fifo is
// removed by Start.
func (r Runtime) Waiting(id string) bool {
	_, err := os.Stat(filepath.Join(r.Root, id, "exec.fifo"))
	return err == nil
}

func (r Runtime) run(ctx context.Context, args ...string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cmd, done, err := r.command(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer done()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := mortal(cmd); err != nil {
		return nil, failure(cmd, stderr.Bytes(), err)
	}
	return stdout.Bytes(), nil
}

// command prepares a call that ctx does not cut off. done releases its timer.
func (r Runtime) command(ctx context.Context, args ...string) (cmd *exec.Cmd, done func(), err error) {
	path, err := command.Find("crun")
	if err != nil {
		return nil, nil, err
	}
	ctx, done = context.WithTimeout(context.WithoutCancel(ctx), limit)
	cmd = exec.CommandContext(ctx, path, append([]string{"--root=" + r.Root, "--cgroup-manager=cgroupfs"}, args...)...)
	cmd.Env = environment()
	// Not in our group: a Ctrl-C on the daemon's terminal is none of the container's business.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd, done, nil
}

// mortal runs a call of crun that ends with this process: the next daemon, which does it again, must not find one of the
// last still at it. Containers are not concerned.
func mortal(cmd *exec.Cmd) error {
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	runtime.LockOSThread() // its end would count as that of the process
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// noInput is an empty input that is not /dev/null: crun gives a container's standard streams to its root user, and with them
// would go the host's device.
func noInput() (*os.File, error) {
	empty, feed, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return empty, feed.Close()
}

// environment of crun: ours would hand NOTIFY_SOCKET or LISTEN_FDS of the daemon on to containers.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
}

func failure(cmd *exec.Cmd, stderr []byte, err error) error {
	stderr = bytes.TrimSpace(stderr)
	if cut := len(stderr) - stderrSize; cut > 0 {
		stderr = stderr[cut:]
	}
	e := &command.Error{Argv: cmd.Args, ExitCode: -1, Stderr: string(bytes.ToValidUTF8(stderr, []byte("?"))), Err: err}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		e.ExitCode = exit.ExitCode()
	}
	return e
}
