package servertest

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// VEs implements server.Backend.
func (b *Backend) VEs(context.Context) ([]api.VE, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ves []api.VE
	for _, name := range slices.Sorted(maps.Keys(b.ves)) {
		ves = append(ves, b.ves[name])
	}
	return ves, nil
}

// VE implements server.Backend.
func (b *Backend) VE(_ context.Context, name string) (api.VE, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ve(name)
}

func (b *Backend) ve(name string) (api.VE, error) {
	ve, ok := b.ves[name]
	if !ok {
		return ve, api.Errorf(api.NotFound, "ve %q not found; see: polder list", name)
	}
	return ve, nil
}

// act starts an operation that brings a VE from one of the states to another.
func (b *Backend) act(kind, name string, to api.State, from ...api.State) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ve, err := b.ve(name)
	if err != nil {
		return api.Operation{}, err
	}
	if !slices.Contains(from, ve.State) {
		return api.Operation{}, api.Errorf(api.Precondition, "%s %q: it is %s", kind, name, ve.State)
	}
	return b.start(kind, "ve/"+name, "", func() {
		ve.State = to
		b.ves[name] = ve
	}), nil
}

// Start implements server.Backend.
func (b *Backend) Start(_ context.Context, name string) (api.Operation, error) {
	return b.act("start", name, api.Running, api.Stopped, api.Failed)
}

// Stop implements server.Backend.
func (b *Backend) Stop(_ context.Context, name string, _ api.StopRequest) (api.Operation, error) {
	return b.act("stop", name, api.Stopped, api.Running, api.Paused)
}

// Restart implements server.Backend.
func (b *Backend) Restart(_ context.Context, name string, _ api.StopRequest) (api.Operation, error) {
	return b.act("restart", name, api.Running, api.Running, api.Paused)
}

// Pause implements server.Backend.
func (b *Backend) Pause(_ context.Context, name string) (api.Operation, error) {
	return b.act("pause", name, api.Paused, api.Running)
}

// Resume implements server.Backend.
func (b *Backend) Resume(_ context.Context, name string) (api.Operation, error) {
	return b.act("resume", name, api.Running, api.Paused)
}

// Delete implements server.Backend.
func (b *Backend) Delete(_ context.Context, name string) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.ve(name); err != nil {
		return api.Operation{}, err
	}
	return b.start("delete", "ve/"+name, "", func() { delete(b.ves, name) }), nil
}

// running says whether a command or console can be had.
func (b *Backend) running(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	ve, err := b.ve(name)
	if err == nil && ve.State != api.Running {
		err = api.Errorf(api.Precondition, "ve %q is %s; start it with: polder start %s", name, ve.State, name)
	}
	return err
}

// Exec implements server.Backend: the command runs on this machine.
func (b *Backend) Exec(ctx context.Context, name string, req api.ExecRequest, s model.Streams) (int, error) {
	if err := b.running(name); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, req.Command[0], req.Command[1:]...)
	cmd.Env = append(os.Environ(), append(req.Env, "POLDER_VE="+name)...)
	cmd.Dir = req.Dir
	cmd.WaitDelay = time.Second
	if req.TTY {
		return runTTY(cmd, req, s)
	}
	cmd.Stdout, cmd.Stderr = s.Stdout, s.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return 127, nil
		}
		return 0, api.Errorf(api.Internal, "exec in %q: %w", name, err)
	}
	go func() {
		io.Copy(stdin, s.Stdin) //nolint:errcheck // the command need not read all
		stdin.Close()
	}()
	return wait(cmd, s, nil)
}

func runTTY(cmd *exec.Cmd, req api.ExecRequest, s model.Streams) (int, error) {
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: req.Rows, Cols: req.Cols})
	if err != nil {
		return 0, err
	}
	defer tty.Close()
	go io.Copy(tty, s.Stdin) //nolint:errcheck // ends with the tty
	copied := make(chan struct{})
	go func() {
		io.Copy(s.Stdout, tty) //nolint:errcheck // ends with EIO when the command is gone
		close(copied)
	}()
	code, err := wait(cmd, s, func(size api.Resize) { pty.Setsize(tty, &pty.Winsize{Rows: size.Rows, Cols: size.Cols}) }) //nolint:errcheck // the test sees it
	<-copied
	return code, err
}

func wait(cmd *exec.Cmd, s model.Streams, resize func(api.Resize)) (int, error) {
	done := make(chan struct{})
	var controls sync.WaitGroup
	defer controls.Wait()
	defer close(done)
	controls.Go(func() {
		for {
			select {
			case name := <-s.Signals:
				cmd.Process.Signal(unix.SignalNum("SIG" + name)) //nolint:errcheck // it may be gone
			case size := <-s.Resize:
				if resize != nil {
					resize(size)
				}
			case <-done:
				return
			}
		}
	})
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// Console implements server.Backend: it greets, and says what it was told in capitals.
func (b *Backend) Console(_ context.Context, name string, s model.Streams) error {
	if err := b.running(name); err != nil {
		return err
	}
	if _, err := io.WriteString(s.Stdout, name+" login: "); err != nil {
		return err
	}
	buf := make([]byte, 1024)
	for {
		n, err := s.Stdin.Read(buf)
		if _, err := io.WriteString(s.Stdout, strings.ToUpper(string(buf[:n]))); err != nil {
			return err
		}
		if err != nil {
			return nil //nolint:nilerr // the end of the input is the end of the console
		}
	}
}

// Logs implements server.Backend.
func (b *Backend) Logs(ctx context.Context, name string, follow bool, w io.Writer) error {
	if _, err := io.WriteString(w, name+": booted\n"); err != nil {
		return err
	}
	if follow {
		<-ctx.Done()
	}
	return nil
}
