package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// undoLimit is how long taking back what a call has done may take, also when the call itself was given up.
const undoLimit = 30 * time.Second

// Start creates the container, puts its NICs in, and lets its first process go.
func (m *Model) Start(ctx context.Context, ve model.Spec) (model.Process, error) {
	p, err := m.start(ctx, ve)
	if err != nil {
		return p, api.Errorf(kindOf(ctx, err), "start container %q: %w", ve.Name, err)
	}
	return p, nil
}

func (m *Model) start(ctx context.Context, ve model.Spec) (p model.Process, err error) {
	if err := ctx.Err(); err != nil {
		return p, err
	}
	if err := checkSpec(ve); err != nil {
		return p, api.Errorf(api.Invalid, "%w", err)
	}
	if w, ok := m.running(ve); ok {
		return process(ve, w), nil
	}
	// What an earlier call left half-made is not worth finishing: making it anew takes milliseconds.
	if m.traces(ve) {
		if err := m.tidy(ctx, ve); err != nil {
			return p, err
		}
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
			defer cancel()
			err = errors.Join(err, m.tidy(undo, ve))
		}
	}()
	if err := os.Remove(stoppingFile(ve)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	pid, err := m.create(ctx, ve)
	if err != nil {
		return p, err
	}
	for _, nic := range ve.NICs {
		if err := ve.Plug.Veth(ctx, nic, pid); err != nil {
			return p, err
		}
	}
	w, err := model.WatchPID(pid)
	if err != nil {
		return p, err
	}
	if err := m.runtime.Start(ctx, ve.ID); err != nil {
		w.Close()
		return p, err
	}
	return process(ve, w), nil
}

// traces says whether an earlier start has left anything.
func (m *Model) traces(ve model.Spec) bool {
	for _, path := range []string{recordFile(ve), moveFile(ve), string(cgroupOf(ve)), string(moverOf(ve)), imagesDir(ve)} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return m.runtime.Known(ve.ID) || isMount(rootDir(ve)) || isMount(lowerDir(ve)) || isMount(upperDir(ve))
}

// create makes the container up to its first process, which waits. The host's mount of the root is gone afterwards.
func (m *Model) create(ctx context.Context, ve model.Spec) (pid int, err error) {
	if err := unified(); err != nil {
		return 0, err
	}
	limits, err := cgroupOf(ve).delegate()
	if err != nil {
		return 0, err
	}
	root, err := mountRoot(ve)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unmountRoot(ve)) }()
	if err := writeIdentity(ve, root); err != nil {
		return 0, err
	}
	c, err := config(ve, root, limits)
	if err != nil {
		return 0, err
	}
	content, err := json.Marshal(c)
	if err != nil {
		return 0, err
	}
	if err := replaceFile(filepath.Join(bundleDir(ve), "config.json"), content); err != nil {
		return 0, err
	}
	log, err := openLog(ve)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	// crun makes the state directory itself, but not the one above it.
	if err := os.MkdirAll(m.runtime.Root, 0o700); err != nil {
		return 0, err
	}
	if pid, err = m.runtime.Create(ctx, ve.ID, bundleDir(ve), log); err != nil {
		return 0, err
	}
	return pid, writeRecord(ve, pid)
}

// logLimit is the size from which on a start begins a new console log; one older log is kept.
const logLimit = 1 << 20

func oldLog(ve model.Spec) string { return ve.LogPath() + ".1" }

func openLog(ve model.Spec) (*os.File, error) {
	if info, err := os.Lstat(ve.LogPath()); err == nil && info.Size() > logLimit {
		if err := os.Rename(ve.LogPath(), oldLog(ve)); err != nil {
			return nil, err
		}
	}
	safe, err := os.OpenFile(ve.LogPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, err
	}
	defer safe.Close()
	// The VE's own must not have the flag: CRIU opens it again with the same ones, by a link in /proc.
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", safe.Fd()), os.O_WRONLY|os.O_APPEND, 0)
}
