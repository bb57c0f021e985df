package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"polder/internal/network"
)

// leave ends what this host runs by the word of a store that it will not ask again: first the VEs, of which another host may run the
// successors by now, then the network. What the VEs have on disk is left alone. Idempotent.
func leave(ctx context.Context, fabric *network.Fabric, log *slog.Logger) error {
	for {
		pids, err := inVEs("/proc")
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return fabric.Down(ctx)
		}
		log.Warn("ending the VEs of this host, which has left its cluster", "processes", len(pids))
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end the VEs of a host that has left its cluster: process %d: %w", pid, err)
			}
		}
		select {
		case <-time.After(50 * time.Millisecond): // until they are gone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// inVEs lists the processes in the cgroups of VEs: containers' own, and QEMU. Names and files of VEs need not be known for it.
func inVEs(proc string) (pids []int, err error) {
	dirs, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(proc, dir.Name(), "cgroup"))
		if err == nil && isVE(string(text)) && !isZombie(filepath.Join(proc, dir.Name())) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isVE reads /proc/PID/cgroup: lines of ID:CONTROLLERS:PATH.
func isVE(cgroups string) bool {
	for line := range strings.Lines(cgroups) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && strings.HasPrefix(parts[2], "/polder/") {
			return true
		}
	}
	return false
}

// isZombie says that a process is dead and merely waits for its parent.
func isZombie(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return true
	}
	_, state, ok := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	return ok && strings.HasPrefix(state, "Z")
}
