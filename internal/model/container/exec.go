package container

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"polder/api"
	"polder/internal/crun"
	"polder/internal/model"
)

// Exec runs a command in the VE. What it reads of streams.Stdin ends with the command, save for one Read that is under way:
// that ends when the caller's input does.
func (m *Model) Exec(ctx context.Context, ve model.Spec, req api.ExecRequest, streams model.Streams) (int, error) {
	code, err := m.exec(ctx, ve, req, streams)
	if err != nil {
		return code, api.Errorf(kindOf(ctx, err), "%w", err)
	}
	return code, nil
}

func (m *Model) exec(ctx context.Context, ve model.Spec, req api.ExecRequest, streams model.Streams) (int, error) {
	root, err := m.rootOf(ve)
	if err != nil {
		return 0, err
	}
	process, err := execProcess(ve, root, req)
	_ = root.Close()
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(execDir, 0o700); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(execDir, ve.ID+".")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	e := crun.Exec{ID: ve.ID, Process: process, Dir: dir, Stdout: streams.Stdout, Stderr: streams.Stderr}
	done, stop := context.WithCancel(ctx)
	defer stop()
	if streams.Signals != nil {
		go forwardSignals(done, e, streams.Signals)
	}
	if req.TTY {
		return m.execTTY(ctx, e, streams)
	}
	return m.execPiped(ctx, e, streams)
}

func (m *Model) execPiped(ctx context.Context, e crun.Exec, streams model.Streams) (int, error) {
	if streams.Stdin == nil {
		return m.runtime.Exec(ctx, e)
	}
	stdin, feed, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer stdin.Close()
	defer feed.Close() // ends a write that is under way
	go func() {
		_, _ = io.Copy(feed, streams.Stdin)
		_ = feed.Close()
	}()
	e.Stdin = stdin
	return m.runtime.Exec(ctx, e)
}

// rootOf opens the root of a VE that runs, as its processes see it.
func (m *Model) rootOf(ve model.Spec) (tree, error) {
	w, ok := m.running(ve)
	if !ok {
		return tree{}, api.Errorf(api.Precondition, "ve is not running: start it first")
	}
	defer w.Close()
	if cgroupOf(ve).frozen() {
		return tree{}, api.Errorf(api.Precondition, "ve is paused: resume it first")
	}
	root, err := openTree(processRoot(w.PID))
	if err != nil {
		return tree{}, err
	}
	// Opened by pid: it is the VE's only if that lives still.
	if _, err := model.StartTime(w.PID); err != nil {
		return tree{}, errors.Join(err, root.Close())
	}
	return root, nil
}

func execProcess(ve model.Spec, root tree, req api.ExecRequest) (*specs.Process, error) {
	if len(req.Command) == 0 || req.Command[0] == "" {
		return nil, api.Errorf(api.Invalid, "no command was given")
	}
	u, err := lookupUser(root, req.User)
	if err != nil {
		return nil, err
	}
	defaults := []string{"PATH=" + searchPath, "HOME=" + u.home, "container=polder"}
	set := req.Env
	names := systemCapabilities()
	if ve.App != nil {
		set = environment(req.Env, ve.App.Env...)
		names = applicationCapabilities()
	}
	if req.TTY {
		defaults = append(defaults, "TERM=xterm-256color")
	}
	dir := req.Dir
	if dir == "" {
		dir = "/"
		if root.has(u.home) {
			dir = u.home
		}
	}
	p := &specs.Process{
		Args: req.Command, Cwd: dir, Env: environment(set, defaults...), Terminal: req.TTY,
		User:         specs.User{UID: u.uid, GID: u.gid, AdditionalGids: u.groups},
		Capabilities: capabilitySet(names),
	}
	if req.TTY {
		p.ConsoleSize = &specs.Box{Height: 24, Width: 80}
		if req.Rows > 0 && req.Cols > 0 {
			p.ConsoleSize = &specs.Box{Height: uint(req.Rows), Width: uint(req.Cols)}
		}
	}
	return p, nil
}

// forwardSignals until done; a name that is none is passed over.
func forwardSignals(done context.Context, e crun.Exec, names <-chan string) {
	for {
		select {
		case <-done.Done():
			return
		case name, ok := <-names:
			if !ok {
				return
			}
			if signal, known := parseSignal(name); known {
				e.Signal(done, signal)
			}
		}
	}
}
