package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// lockDir takes the directory for this process until the file is closed. The kernel gives it up when the process dies.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, openError(dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, openError(dir, err)
		}
		holder := "another process"
		if text, err := io.ReadAll(io.LimitReader(f, 20)); err == nil && len(text) > 0 {
			holder = "process " + strings.TrimSpace(string(text))
		}
		return nil, api.Errorf(api.Conflict, "open store %q: %s has it open: stop that one, or give this one its own directory with --data", dir, holder)
	}
	// The pid is for people only, so that a disk too full to write it is no reason to fail.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(fmt.Sprintln(os.Getpid())), 0)
	}
	return f, nil
}

func openError(dir string, err error) error {
	kind := api.Internal
	if isDiskFull(err.Error()) {
		kind = api.Exhausted
	}
	return api.Errorf(kind, "open store %q: %w", dir, err)
}

// isDiskFull looks at the text because etcd's fatal messages carry no error value.
func isDiskFull(text string) bool {
	return strings.Contains(text, unix.ENOSPC.Error()) || strings.Contains(text, unix.EDQUOT.Error())
}
