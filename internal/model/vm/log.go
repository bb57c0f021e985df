package vm

import (
	"errors"
	"io"
	"os"
	"time"

	"polder/internal/model"
)

const (
	// logMost is how long the console's log may become: a system that talks without end must not fill the host's disk.
	logMost = 64 << 20
	// logKept is how much of its end is kept when it is cut, in bytes.
	logKept = 1 << 20
	// logEvery is how often it is looked at.
	logEvery = 30 * time.Second
)

// keepLogShort cuts the console's log while it waits for the VE's end.
func keepLogShort(ve model.Spec, exited <-chan model.ExitStatus) (status model.ExitStatus, ok bool) {
	ticker := time.NewTicker(logEvery)
	defer ticker.Stop()
	for {
		select {
		case status, ok = <-exited:
			return status, ok
		case <-ticker.C:
			_ = cutLog(ve.LogPath(), logMost) // it grows on, and the next turn tries again
		}
	}
}

// cutLog leaves only the end of a log that is longer than most. QEMU appends, so it goes on behind that.
func cutLog(path string, most int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() <= most {
		return err
	}
	end := make([]byte, min(logKept, info.Size()))
	if _, err := f.ReadAt(end, info.Size()-int64(len(end))); err != nil && err != io.EOF {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	// Both append: what QEMU writes at this very moment may come to stand before the end.
	_, err = f.Write(end)
	return err
}
