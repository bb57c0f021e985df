package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"polder/internal/model"
)

// record names the VE's first process for as long as this boot of the host lasts. It is what a restarted daemon finds the
// VE by without running anything.
type record struct {
	Version   int    `json:"version"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // clock ticks since boot
	Boot      string `json:"boot"`
}

const recordVersion = 1

func recordFile(ve model.Spec) string { return filepath.Join(bundleDir(ve), "run.json") }

// writeRecord remembers the process of a container that was just created.
func writeRecord(ve model.Spec, pid int) error {
	start, err := model.StartTime(pid)
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	content, err := json.Marshal(record{Version: recordVersion, PID: pid, StartTime: start, Boot: boot})
	if err != nil {
		return err
	}
	// Not synced: after a crash of the host it is worthless anyway.
	return replaceFile(recordFile(ve), content)
}

// readRecord gives the record of this boot; ok is false when there is none.
func readRecord(ve model.Spec) (r record, ok bool, err error) {
	content, err := os.ReadFile(recordFile(ve))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, false, nil
	} else if err != nil {
		return record{}, false, err
	}
	if err := json.Unmarshal(content, &r); err != nil || r.PID <= 1 {
		return record{}, false, nil // cut short by a crash of the host
	}
	if r.Version != recordVersion {
		return record{}, false, fmt.Errorf("%s has version %d, this Polder knows %d", recordFile(ve), r.Version, recordVersion)
	}
	boot, err := bootID()
	return r, r.Boot == boot, err
}

// bootID is different after every boot of the host.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

func replaceFile(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
