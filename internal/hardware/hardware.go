// Package hardware says what this machine is and what it can do: its inventory, and each capability that Polder uses,
// tried on the real thing where that is possible, with the command that mends what is missing.
//
// Only RaiseInotify changes anything on the machine: what is made to try something (a namespace, a link, a virtual machine of a few
// instructions) is gone when the call returns. It has no state; everything is safe for concurrent use.
package hardware

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

// Inventory is what the machine has.
type Inventory struct {
	Arch     string // as Go and Debian call it: "amd64"
	CPUModel string
	CPUs     int // that this process may run on
	Memory   api.Bytes
	Kernel   string // release
	BootedAt time.Time
}

// Take takes the inventory. It reads a few files of /proc; it does not block.
func Take() (Inventory, error) {
	inv := Inventory{Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Kernel: kernelRelease()}
	mem, err := procValue("/proc/meminfo", "MemTotal")
	if err != nil {
		return inv, fmt.Errorf("take inventory: %w", err)
	}
	kib, err := strconv.ParseInt(strings.TrimSuffix(mem, " kB"), 10, 64)
	if err != nil {
		return inv, fmt.Errorf("take inventory: MemTotal %q: %w", mem, err)
	}
	inv.Memory = api.Bytes(kib) * api.KiB
	// The time of boot in /proc/stat does not drift with suspend, unlike the uptime.
	boot, err := procValue("/proc/stat", "btime")
	if err != nil {
		return inv, fmt.Errorf("take inventory: %w", err)
	}
	seconds, err := strconv.ParseInt(boot, 10, 64)
	if err != nil {
		return inv, fmt.Errorf("take inventory: btime %q: %w", boot, err)
	}
	inv.BootedAt = time.Unix(seconds, 0).UTC()
	inv.CPUModel, _ = procValue("/proc/cpuinfo", "model name") // not every architecture has it
	return inv, nil
}

// procValue finds a line "key: value" or "key value".
func procValue(file, key string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // the line "intr" of /proc/stat is long
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), key)
		if ok && rest != "" && strings.ContainsAny(rest[:1], ": \t") {
			return strings.TrimLeft(rest, ": \t"), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf("%s has no line %q", file, key)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
