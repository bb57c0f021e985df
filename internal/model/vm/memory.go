package vm

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// memoryName is what the kernel shows as the name of a VE's memory, for people and for findMemory.
const memoryName = "polder-memory"

// memorySize is in whole MiB: QEMU rounds the size of the memory up, but not that of its backend.
func memorySize(ve model.Spec) int64 { return int64(ve.Memory / api.MiB * api.MiB) }

// makeMemory makes a VE's memory: a file without a name that takes what is written to, and is gone with its last user.
func makeMemory(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(memoryName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the VE's memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), memoryName)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// memory is where a QEMU has the VE's memory.
type memory struct {
	pid        int
	start, end uint64
	private    bool // what is written is this QEMU's own: it was forked, or is a fork
	file       string
}

// findMemory finds the mapping of a VE's memory in its QEMU.
func findMemory(ve model.Spec) (memory, error) {
	pid, err := holder(ve)
	if err != nil {
		return memory{}, err
	}
	if pid == 0 {
		return memory{}, notRunning(ve)
	}
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "maps"))
	if err != nil {
		return memory{}, err
	}
	defer f.Close()
	got := memory{pid: pid}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 7f12a0000000-7f12b0000000 rw-s 00000000 00:01 1234   /memfd:polder-memory (deleted)
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || !strings.HasPrefix(fields[5], "/memfd:"+memoryName) && filepath.Base(fields[5]) != memoryName {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil {
			return memory{}, fmt.Errorf("unknown line in maps: %q", lines.Text())
		}
		if got.end == start && got.start != 0 { // one mapping may be shown in parts
			got.end = end
			continue
		}
		got.start, got.end, got.private = start, end, strings.HasSuffix(fields[1], "p")
		got.file = filepath.Join("/proc", strconv.Itoa(pid), "map_files", fields[0])
	}
	if int64(got.end-got.start) != memorySize(ve) {
		return memory{}, api.Errorf(api.Precondition, "vm %q was started by an older polder, which keeps its memory otherwise: polder restart %s", ve.Name, ve.Name)
	}
	return got, nil
}

// memoryUsed is how much of the VE's memory has been touched: what its file takes, and what has been written since it was forked.
func memoryUsed(ve model.Spec) (api.Bytes, error) {
	at, err := findMemory(ve)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(at.file)
	if err != nil {
		return 0, err
	}
	var used api.Bytes
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		used = api.Bytes(stat.Blocks * 512)
	}
	if at.private {
		own, err := at.ownPages()
		if err != nil {
			return 0, err
		}
		for _, r := range own {
			used += api.Bytes(r.end - r.start)
		}
	}
	return used, nil
}

// span is a part of a VE's memory, in bytes from its begin.
type span struct{ start, end uint64 }

// Of /proc/PID/pagemap.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61 // or shared: it is not this process' own
	pageSize    = 4096
)

// ownPages are those that a private mapping has written to.
func (m memory) ownPages() ([]span, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(m.pid), "pagemap"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []span
	buf := make([]byte, 8*16384)
	for at := m.start; at < m.end; {
		n := min(uint64(len(buf)), (m.end-at)/pageSize*8)
		if _, err := f.ReadAt(buf[:n], int64(at/pageSize*8)); err != nil {
			return nil, fmt.Errorf("read pagemap: %w", err)
		}
		for i := uint64(0); i < n; i += 8 {
			if entry := binary.NativeEndian.Uint64(buf[i:]); entry&(pagePresent|pageSwapped) != 0 && entry&pageOfFile == 0 {
				offset := at - m.start + i/8*pageSize
				if last := len(list) - 1; last >= 0 && list[last].end == offset {
					list[last].end += pageSize
				} else {
					list = append(list, span{offset, offset + pageSize})
				}
			}
		}
		at += n / 8 * pageSize
	}
	return list, nil
}
