package container

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
)

// netSysctls is where a network namespace has its settings. CRIU carries those of interfaces (conf, neigh) and a few of the others.
const netSysctls = "/proc/sys/net"

// sysctlsOf reads what CRIU leaves out, by their paths below netSysctls.
func sysctlsOf(pid int) (map[string]string, error) {
	all := map[string]string{}
	err := withinNetOf(pid, func() error {
		return filepath.WalkDir(netSysctls, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil // a module took it away
			case d.IsDir() && (d.Name() == "conf" || d.Name() == "neigh"):
				return fs.SkipDir
			case d.IsDir():
				return nil
			}
			if info, err := d.Info(); err != nil || info.Mode()&0o600 != 0o600 {
				return nil
			}
			if value, err := os.ReadFile(path); err == nil {
				all[strings.TrimPrefix(path, netSysctls+"/")] = strings.TrimSpace(string(value))
			}
			return nil
		})
	})
	return all, err
}

// setSysctls writes those that differ. What this host's kernel does not have, or takes otherwise, stays as it is here.
func setSysctls(pid int, all map[string]string) error {
	if len(all) == 0 {
		return nil
	}
	return withinNetOf(pid, func() error {
		root, err := os.OpenRoot(netSysctls)
		if err != nil {
			return err
		}
		defer root.Close()
		for name, value := range all {
			now, err := root.ReadFile(name)
			if err != nil || strings.TrimSpace(string(now)) == value {
				continue
			}
			if err := root.WriteFile(name, []byte(value), 0); err != nil {
				slog.Warn("a network setting is not carried", "name", name, "value", value, "err", err)
			}
		}
		return nil
	})
}

// withinNetOf runs f on a thread in the network namespace of pid: files below netSysctls are those of who opens them.
func withinNetOf(pid int, f func() error) error {
	there, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer there.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine
		if err := netns.Set(there); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}
