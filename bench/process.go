package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU time in /proc: USER_HZ, 100 on every architecture that Linux still has.
const tick = 10 * time.Millisecond

// memory of processes, in bytes.
type memory struct{ rss, pss float64 }

const megabyte = 1e6

// memoryOf reads one process's. PSS counts a page that n processes share as 1/n.
func memoryOf(pid int) (m memory, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return m, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[0] != "Rss:" && fields[0] != "Pss:" {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return m, err
		}
		if fields[0] == "Rss:" {
			m.rss = kib * 1024
		} else {
			m.pss = kib * 1024
		}
	}
	return m, lines.Err()
}

// cpuOf is the CPU time that a process has used, its threads included.
func cpuOf(pid int) (time.Duration, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("process %d: CPU time %q, %q", pid, fields[11], fields[12])
	}
	return time.Duration(user+system) * tick, nil
}

// stat is /proc/PID/stat from the state on; see proc_pid_stat(5), fields 3 and up.
func stat(pid int) ([]string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(data[bytes.LastIndexByte(data, ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return nil, fmt.Errorf("process %d: short stat", pid)
	}
	return fields, nil
}

func namespace(pid int, kind string) string {
	link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	return link
}

func argv(pid int) []string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}

// besides are the processes in the network and pid namespaces of pid: a daemon and what it keeps running beside the
// containers, which have their own.
func besides(pid int) ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	network, pids := namespace(pid, "net"), namespace(pid, "pid")
	var found []int
	for _, entry := range entries {
		other, err := strconv.Atoi(filepath.Base(entry))
		if err == nil && namespace(other, "net") == network && namespace(other, "pid") == pids {
			found = append(found, other)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("process %d is gone", pid)
	}
	return found, nil
}

// footprint is the PSS of the processes besides the containers; ones that end meanwhile don't count.
func footprint(pid int) (total float64, processes int, err error) {
	pids, err := besides(pid)
	if err != nil {
		return 0, 0, err
	}
	for _, p := range pids {
		if m, err := memoryOf(p); err == nil {
			total += m.pss
			processes++
		}
	}
	return total, processes, nil
}

// available is what the kernel says it could still give out, in bytes.
func available() (float64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemAvailable")
}
