package container

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/criu"
)

// mapping is a piece of a process's address space whose pages CRIU would dump, and that can be read from outside.
type mapping struct {
	start, end uint64
	// memory is what CRIU counts its pages to, and base the address there that start has.
	memory criu.Memory
	base   uint64
	shared bool
}

// widest is the largest mapping that is looked at while the VE runs: what reserves more has few pages in much space, and takes
// longer to look through than to send at last.
const widest = 16 << 30

// mappings lists them, in the order of their addresses. A process that has ended has none.
func mappings(pid int) ([]mapping, error) {
	inside, err := insidePID(pid)
	if err != nil {
		return nil, nil //nolint:nilerr // it has ended
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, nil //nolint:nilerr // it has ended
	}
	defer f.Close()
	var all []mapping
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if m, ok := parseMapping(lines.Text(), inside); ok {
			all = append(all, m)
		}
	}
	return all, nil
}

// parseMapping reads a line of /proc/PID/maps; inside is the process's pid in the VE.
func parseMapping(line string, inside uint64) (m mapping, ok bool) {
	f := strings.Fields(line)
	if len(f) < 5 || len(f[1]) != 4 || f[1][0] != 'r' {
		return m, false
	}
	path := strings.Join(f[5:], " ")
	from, to, _ := strings.Cut(f[0], "-")
	var err [4]error
	var offset, inode uint64
	m.start, err[0] = strconv.ParseUint(from, 16, 64)
	m.end, err[1] = strconv.ParseUint(to, 16, 64)
	offset, err[2] = strconv.ParseUint(f[2], 16, 64)
	inode, err[3] = strconv.ParseUint(f[4], 10, 64)
	if err != [4]error{} || m.end <= m.start || m.end-m.start > widest {
		return m, false
	}
	if f[1][3] == 's' {
		m.shared, m.memory, m.base = true, criu.Memory{Shared: true, ID: inode}, offset
		return m, path == "/dev/zero (deleted)" || strings.HasPrefix(path, "/memfd:")
	}
	m.memory, m.base = criu.Memory{ID: inside}, m.start
	return m, path != "[vdso]" && path != "[vvar]" && path != "[vvar_vclock]" && path != "[vsyscall]" && path != hugePages
}

// restoredApart says whether a line of /proc/PID/maps is of a mapping because of which CRIU can't restore its process from an earlier dump. It
// maps all that is private anew for that, writable, before it puts pages in: where a program has only reserved addresses, more than
// there is memory perhaps (MariaDB does), the kernel refuses. And it takes huge pages from images proper only.
func restoredApart(line string) bool {
	f := strings.Fields(line)
	if len(f) < 5 || len(f[1]) != 4 || f[1][3] != 'p' {
		return false
	}
	from, to, _ := strings.Cut(f[0], "-")
	start, err := strconv.ParseUint(from, 16, 64)
	end, failed := strconv.ParseUint(to, 16, 64)
	if err != nil || failed != nil || end < start {
		return false
	}
	size := end - start
	return size > widest || size > reserved && f[1][1] != 'w' || strings.Join(f[5:], " ") == hugePages
}

// reserved is how much of a program's memory in one piece may be there for addresses alone: less than hosts have memory, and more than
// most programs reserve (those in Go 512 MiB).
const reserved = 2 << 30

// hugePages is the kernel's name of private memory in huge pages.
const hugePages = "/anon_hugepage (deleted)"

// insidePID is the process's pid in the VE.
func insidePID(pid int) (uint64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if pids := strings.Fields(rest); len(pids) > 1 {
				return strconv.ParseUint(pids[1], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("process %d is in no pid namespace of its own", pid)
}

// Of a number in /proc/PID/pagemap.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61 // or of shared memory
)

// reader reads the memory of a VE's processes from outside, which they don't notice.
type reader struct {
	pages  []byte // of pagemap
	buffer []byte
}

func newReader() *reader {
	return &reader{pages: make([]byte, 8*4096), buffer: make([]byte, chunkSize)}
}

// runs calls f for each row of pages of a mapping that are there. What the process does meanwhile may be missed.
func (r *reader) runs(pid int, m mapping, f func(addr, size uint64) error) error {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil //nolint:nilerr // it has ended
	}
	defer pagemap.Close()
	from, addr := m.start, m.start
	flush := func() error {
		if addr == from {
			return nil
		}
		return f(from, addr-from)
	}
	for addr < m.end {
		want := min(uint64(len(r.pages)), (m.end-addr)/criu.PageSize*8)
		n, err := pagemap.ReadAt(r.pages[:want], int64(addr/criu.PageSize*8))
		if n == 0 || err != nil {
			break // it has ended, or what is mapped there can't be told
		}
		for at := 0; at < n; at += 8 {
			page := binary.NativeEndian.Uint64(r.pages[at:])
			there := page&pagePresent != 0 || page&pageSwapped != 0 && !m.shared
			if there && (m.shared || page&pageOfFile == 0) {
				addr += criu.PageSize
				continue
			}
			if err := flush(); err != nil {
				return err
			}
			addr += criu.PageSize
			from = addr
		}
	}
	return flush()
}

// read gives f the content of some pages; of a page that went away meanwhile, nothing.
func (r *reader) read(pid int, addr, size uint64, f func(addr uint64, content []byte) error) error {
	for size > 0 {
		part := min(size, uint64(len(r.buffer)))
		n, _ := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &r.buffer[0], Len: part}}, []unix.RemoteIovec{{Base: uintptr(addr), Len: int(part)}}, 0)
		whole := uint64(max(n, 0)) / criu.PageSize * criu.PageSize
		if whole > 0 {
			if err := f(addr, r.buffer[:whole]); err != nil {
				return err
			}
		} else {
			whole = criu.PageSize
		}
		addr, size = addr+whole, size-whole
	}
	return nil
}

// sampled is how many pages of a VE are looked at to tell how many change.
const sampled = 1024

// changing is the share of the pages of some processes, which have about so much memory, that are not after d as they were before.
func changing(ctx context.Context, pids []int, memory api.Bytes, d time.Duration) (float64, error) {
	type page struct {
		pid  int
		addr uint64
	}
	before := map[page]uint64{}
	r, count, every := newReader(), uint64(0), max(1, uint64(memory)/criu.PageSize/sampled)
	look := func(p page) (sum uint64, ok bool) {
		_ = r.read(p.pid, p.addr, criu.PageSize, func(_ uint64, content []byte) error {
			sum, ok = xxh3.Hash(content), true
			return nil
		})
		return sum, ok
	}
	for _, pid := range pids {
		all, err := mappings(pid)
		if err != nil {
			return 0, err
		}
		for _, m := range all {
			err := r.runs(pid, m, func(addr, size uint64) error {
				for end := addr + size; addr < end; addr += criu.PageSize {
					if count++; count%every == 0 {
						at := page{pid, addr}
						if sum, ok := look(at); ok {
							before[at] = sum
						}
					}
				}
				return ctx.Err()
			})
			if err != nil {
				return 0, err
			}
		}
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	changed := 0
	for at, sum := range before {
		if now, ok := look(at); !ok || now != sum {
			changed++
		}
	}
	return float64(changed) / float64(max(len(before), 1)), nil
}
