package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"polder/api"
	"polder/internal/model"
)

// logPoll is how often a followed log is looked at: it is a plain file written by QEMU or the container itself.
const logPoll = 200 * time.Millisecond

// Logs writes what a VE has to tell: the console of a vm, the output of an application, and of a container that runs a
// system (whose init has no console) its journal. With follow it goes on until ctx is done or the VE ends.
func (h *Host) Logs(ctx context.Context, name string, follow bool, w io.Writer) error {
	v, err := h.get(ctx, name)
	if err != nil {
		return err
	}
	if v.Model == api.Container && v.App == nil && v.State == api.Running {
		return h.journal(ctx, name, follow, w)
	}
	f, err := os.Open(model.Spec{Dir: h.veDir(v.ID)}.LogPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil // never started
	}
	if err != nil {
		return fmt.Errorf("logs of ve %q: %w", name, err)
	}
	defer f.Close()
	for {
		if _, err := io.Copy(w, f); err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(logPoll):
		}
	}
}

// journal writes the system's journal since its boot.
func (h *Host) journal(ctx context.Context, name string, follow bool, w io.Writer) error {
	command := []string{"journalctl", "--boot", "--no-pager", "--quiet"}
	if follow {
		command = append(command, "--follow", "--lines=all")
	}
	code, err := h.Exec(ctx, name, api.ExecRequest{Command: command}, model.Streams{Stdout: w, Stderr: w})
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	case code != 0:
		return api.Errorf(api.Internal, "logs of ve %q: journalctl exited with %d", name, code)
	}
	return nil
}

// A container writes its log itself for as long as it runs, so that nothing depends on the daemon; what keeps it from
// filling the host is that it is emptied when it has grown beyond logLimit. (A vm's log is QEMU's: package vm sees to it.)
const (
	logLimit    = 64 << 20
	logInterval = time.Minute
)

// trimLogs empties logs that have grown too long, until the host is closed.
func (h *Host) trimLogs() {
	ticker := time.NewTicker(logInterval)
	defer ticker.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-ticker.C:
		}
		recs, err := h.ves.List(h.ctx)
		if err != nil {
			continue
		}
		for _, rec := range recs {
			if rec.Value.Model == api.Container && rec.Value.State == api.Running {
				h.trimLog(rec.Value)
			}
		}
	}
}

func (h *Host) trimLog(v VE) {
	path := model.Spec{Dir: h.veDir(v.ID)}.LogPath()
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() <= logLimit {
		return
	}
	if err := os.Truncate(path, 0); err != nil { // its writer appends, so it goes on at the new end
		h.log.Warn("log of a ve not emptied", "ve", v.Name, "error", err)
	}
}
