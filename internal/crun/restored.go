package crun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// stateFiles are what crun keeps of a container in its state directory. It reads them when something is to be done with the
// container: exec needs the configuration and the seccomp filter.
var stateFiles = []string{"config.json", "seccomp.bpf", statusFile}

const statusFile = "status"

// State files of a container, by name, for Restored on another host.
type State map[string][]byte

// Kept reads what crun keeps of a container.
func (r Runtime) Kept(id string) (State, error) {
	kept := State{}
	for _, name := range stateFiles {
		content, err := os.ReadFile(filepath.Join(r.Root, id, name))
		if errors.Is(err, fs.ErrNotExist) && name != statusFile {
			continue
		} else if err != nil {
			return nil, err
		}
		kept[name] = content
	}
	return kept, nil
}

// Restored makes crun know a container that somebody else has made, from what crun kept of it elsewhere. start is the time at which
// the first process started, in clock ticks since boot. It is idempotent.
func (r Runtime) Restored(id string, pid int, start uint64, bundle, cgroup string, kept State) error {
	status := map[string]any{}
	if err := json.Unmarshal(kept[statusFile], &status); err != nil {
		return fmt.Errorf("crun's status of container %s: %w", id, err)
	}
	status["pid"], status["process-start-time"], status["bundle"], status["cgroup-path"] = pid, start, bundle, cgroup
	changed, err := json.Marshal(status)
	if err != nil {
		return err
	}
	dir := filepath.Join(r.Root, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// The status last: it makes the container known.
	for _, name := range stateFiles {
		content, ok := kept[name]
		if name == statusFile {
			content = changed
		} else if !ok {
			continue
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", content, 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return nil
}
