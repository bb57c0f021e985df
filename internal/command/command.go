// Package command runs external tools to their end and turns their failures into errors that say what was run, how it
// ended and what it complained about.
//
// It does not know any tool, save for the Debian package that has it. It is not for processes that outlive the call
// (a VE, dnsmasq): for those use Find and os/exec. It has no state; everything is safe for concurrent use.
package command

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// grace is how long a tool has, from SIGTERM on, to tidy up after itself (mmdebstrap unmounts) before it is killed.
const grace = 5 * time.Second

// Command is a tool to run. The zero value of all but Name will do.
type Command struct {
	Name string // looked for in PATH, then in the sbin directories
	Args []string
	Dir  string   // working directory
	Env  []string // KEY=VALUE, added to the environment of this process and LC_ALL=C
	// Stdin is read to its end, or until the tool ends; nil: empty.
	Stdin io.Reader
	// Stdout gets the standard output; nil: Run returns it.
	Stdout io.Writer
	// Stderr gets a copy of the standard error, for a tool that reports progress there.
	Stderr io.Writer
	// Tree says that the tool starts others that must not outlive it. Needs root.
	Tree bool
}

// Run runs a tool and returns its standard output; see Command.Run.
func Run(ctx context.Context, stdin io.Reader, name string, args ...string) ([]byte, error) {
	return Command{Name: name, Args: args, Stdin: stdin}.Run(ctx)
}

// Run blocks until the tool has ended. When ctx is done, the tool and all of its process group get SIGTERM, and SIGKILL
// five seconds later. It does not outlive this process, however that ends. Errors: a tool that is not installed is api.Unsupported and names its Debian package; one stopped
// by ctx is api.Cancelled or (deadline) api.Unavailable; anything else, and the cause of the latter, is an *Error. Output
// written before a failure is returned too. A tool that ends but leaves a process behind that holds its output open
// fails five seconds later.
func (c Command) Run(ctx context.Context) ([]byte, error) {
	path, err := Find(c.Name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, c.Args...)
	cmd.Args[0] = c.Name
	cmd.Dir = c.Dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), c.Env...)
	cmd.Stdin = c.Stdin
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	stderr := &tail{also: c.Stderr}
	cmd.Stderr = stderr
	// A group of its own, so that what the tool starts is stopped with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c.Tree { // whose end the kernel makes that of all in it
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	runtime.LockOSThread() // its end would count as that of the process
	err = cmd.Run()
	runtime.UnlockOSThread()
	if ctx.Err() != nil && cmd.Process != nil {
		// os/exec kills the leader only. What is left of the group keeps its id from being used again.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if err != nil {
		return stdout.Bytes(), failure(ctx, cmd.Args, stderr.String(), err)
	}
	return stdout.Bytes(), nil
}

// tail keeps the end of what is written to it, and hands everything on.
type tail struct {
	buf  []byte
	also io.Writer
}

const tailSize = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if cut := len(t.buf) - tailSize; cut > 0 {
		t.buf = append(t.buf[:0], t.buf[cut:]...)
	}
	if t.also != nil {
		return t.also.Write(p)
	}
	return len(p), nil
}

func (t *tail) String() string {
	return string(bytes.ToValidUTF8(bytes.TrimSpace(t.buf), []byte("�")))
}
