package container

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/crun"
	"polder/internal/model"
)

// endOfInput is what a terminal's line discipline takes for the end of input: Ctrl-D.
const endOfInput = "\x04"

// drainWait is how long a terminal may still have output after its command has ended.
const drainWait = 250 * time.Millisecond

// reopenWait is how long a terminal that nobody has open is let alone.
const reopenWait = 10 * time.Millisecond

// execTTY runs e at a terminal that crun makes inside the container.
func (m *Model) execTTY(ctx context.Context, e crun.Exec, streams model.Streams) (int, error) {
	e.ConsoleSocket = filepath.Join(e.Dir, "tty")
	if e.Stderr == nil {
		e.Stderr = streams.Stdout // for what crun has to say when there is no such command
	}
	console, err := crun.ListenConsole(e.ConsoleSocket)
	if err != nil {
		return 0, err
	}
	done, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan struct{})
	go func() {
		defer close(served)
		terminal, err := console.Accept()
		if err != nil {
			return // crun failed, and says why
		}
		defer terminal.Close()
		serveTerminal(done, terminal, streams)
	}()
	code, err := m.runtime.Exec(ctx, e)
	_ = console.Close()
	stop()
	<-served
	return code, err
}

// serveTerminal connects a terminal to its user until the last process has left it, or shortly after done.
func serveTerminal(done context.Context, terminal *os.File, streams model.Streams) {
	if streams.Stdin != nil {
		go func() {
			if _, err := io.Copy(terminal, streams.Stdin); err == nil {
				_, _ = io.WriteString(terminal, endOfInput)
			}
		}()
	}
	if streams.Resize != nil {
		go forwardSizes(done, terminal, streams.Resize)
	}
	unhook := context.AfterFunc(done, func() { _ = terminal.SetReadDeadline(time.Now().Add(drainWait)) })
	defer unhook()
	stdout := streams.Stdout
	if stdout == nil {
		stdout = io.Discard
	}
	for {
		_, _ = io.Copy(stdout, terminal) // ends with EIO when nobody has the terminal open
		// login hangs the terminal up and opens it again: only with the command is it left for good.
		select {
		case <-done.Done():
			return
		case <-time.After(reopenWait):
		}
	}
}

func forwardSizes(done context.Context, terminal *os.File, sizes <-chan api.Resize) {
	for {
		select {
		case <-done.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			resize(terminal, size)
		}
	}
}

func resize(terminal *os.File, size api.Resize) {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	// A terminal that is gone needs no size.
	_ = conn.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

// Console logs root in at a new terminal of the VE, or gives it a shell where there is no login.
func (m *Model) Console(ctx context.Context, ve model.Spec, streams model.Streams) error {
	root, err := m.rootOf(ve)
	if err != nil {
		return api.Errorf(api.KindOf(err), "console of ve %q: %w", ve.Name, err)
	}
	command := loginCommand(root)
	_ = root.Close()
	session, leave := context.WithCancel(ctx)
	defer leave()
	if streams.Stdin != nil {
		streams.Stdin = &notifyEnd{streams.Stdin, leave}
	}
	_, err = m.Exec(session, ve, api.ExecRequest{Command: command, TTY: true}, streams)
	if session.Err() != nil && ctx.Err() == nil {
		return nil // the user has left
	}
	return err
}

func loginCommand(root tree) []string {
	for _, login := range []string{"/bin/login", "/usr/bin/login"} {
		if root.has(login) {
			return []string{login, "-f", "root"}
		}
	}
	if root.has("/bin/bash") {
		return []string{"/bin/bash", "-l"}
	}
	return []string{"/bin/sh", "-l"}
}

// notifyEnd calls end when the reader has come to its end.
type notifyEnd struct {
	io.Reader
	end func()
}

func (r *notifyEnd) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.end()
	}
	return n, err
}

func processRoot(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/root" }
