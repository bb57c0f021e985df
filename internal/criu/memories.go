package criu

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"polder/api"
)

// PageSize of the machines that Polder runs containers on.
const PageSize = 4096

// Run is some pages in a row.
type Run struct {
	Addr  uint64
	Pages uint64
}

// Memories keeps the memory that a restore is to have, beside its other images. CRIU wants the pages of a memory one after the
// other in a file, in the order of their addresses; here they come in any order, and again and again. So each is kept at the
// offset that is its address, in a file that is nearly all hole; such a file is what CRIU takes for an earlier dump, of all
// the addresses there are. The images proper say which pages there are at last, and leave them all to the earlier dump. The directory must be on
// a file system with files that large: tmpfs.
//
// Not safe for concurrent use.
type Memories struct {
	dir string // of the images
	of  map[Memory]*memory
}

type memory struct {
	number uint32 // of its files
	file   *os.File
	runs   []Run
	apart  bool
}

const (
	earlierDir  = "earlier"
	parentLink  = "parent" // where CRIU looks for the earlier dump
	addressBits = 48       // of the largest address spaces, unless a program asks for more
	entryPages  = 1 << 31  // of one entry: older CRIUs count with 32 bits
)

// NewMemories begins with no memory in a directory for images.
func NewMemories(dir string) (*Memories, error) {
	if err := os.Mkdir(filepath.Join(dir, earlierDir), 0o755); err != nil {
		return nil, err
	}
	return &Memories{dir: dir, of: map[Memory]*memory{}}, os.Symlink(earlierDir, filepath.Join(dir, parentLink))
}

func (m *Memories) get(name Memory) (*memory, error) {
	if found := m.of[name]; found != nil {
		return found, nil
	}
	made := &memory{number: uint32(len(m.of) + 1)}
	var err error
	if made.file, err = os.OpenFile(filepath.Join(m.dir, earlierDir, made.pages()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		return nil, err
	}
	m.of[name] = made
	return made, nil
}

func (m *memory) pages() string { return fmt.Sprintf("pages-%d.img", m.number) }

// within says whether the bytes are whole pages of an address space.
func within(addr, size uint64) error {
	if addr%PageSize != 0 || size%PageSize != 0 || addr > 1<<addressBits || size > 1<<addressBits-addr {
		return api.Errorf(api.Invalid, "%d bytes of memory at %x", size, addr)
	}
	return nil
}

// Write sets pages of a memory.
func (m *Memories) Write(name Memory, addr uint64, content []byte) error {
	at, err := m.at(name, addr, uint64(len(content)))
	if err != nil {
		return err
	}
	if _, err = at.file.WriteAt(content, int64(addr)); errors.Is(err, unix.ENOSPC) {
		return api.Errorf(api.Exhausted, "no room for the VE's memory: %w", err)
	}
	return err
}

// Zero makes pages of a memory zeros, as all are that were never written.
func (m *Memories) Zero(name Memory, r Run) error {
	if r.Pages > 1<<addressBits/PageSize {
		return api.Errorf(api.Invalid, "%d pages of memory", r.Pages)
	}
	at, err := m.at(name, r.Addr, r.Pages*PageSize)
	if err != nil {
		return err
	}
	return unix.Fallocate(int(at.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(r.Addr), int64(r.Pages*PageSize))
}

func (m *Memories) at(name Memory, addr, size uint64) (*memory, error) {
	if err := within(addr, size); err != nil {
		return nil, err
	}
	return m.get(name)
}

// Has adds to the pages that a memory has at last, in the order of their addresses. Apart: CRIU is not to take them from an earlier dump, for which
// it maps all memory of a process before it restores it; they are copied once more then, by Finish.
func (m *Memories) Has(name Memory, runs []Run, apart bool) error {
	at, err := m.get(name)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if err := within(r.Addr, min(r.Pages, 1<<addressBits)*PageSize); err != nil {
			return err
		}
		if n := len(at.runs); n > 0 && r.Addr < at.runs[n-1].Addr+at.runs[n-1].Pages*PageSize {
			return api.Errorf(api.Invalid, "memory %v: pages at %x come late", name, r.Addr)
		}
		at.runs = append(at.runs, r)
	}
	at.apart = at.apart || apart
	return nil
}

// Finish writes the images.
func (m *Memories) Finish() error {
	all := slices.SortedFunc(maps.Keys(m.of), func(a, b Memory) int { return cmp.Compare(m.of[a].number, m.of[b].number) })
	for _, name := range all {
		if err := m.finish(name, m.of[name]); err != nil {
			return fmt.Errorf("images of memory %v: %w", name, err)
		}
	}
	return nil
}

func (m *Memories) finish(name Memory, of *memory) error {
	pages, err := os.OpenFile(filepath.Join(m.dir, of.pages()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	flags := uint32(flagParent)
	if of.apart {
		flags, err = flagPresent, of.copy(pages)
	} else {
		err = writePagemap(filepath.Join(m.dir, earlierDir, name.image()), of.number, wholeSpace(), flagPresent)
	}
	if err = errors.Join(err, pages.Close()); err != nil {
		return err
	}
	return writePagemap(filepath.Join(m.dir, name.image()), of.number, of.runs, flags)
}

// wholeSpace is all the addresses there are.
func wholeSpace() (runs []Run) {
	for addr := uint64(0); addr < 1<<addressBits; addr += entryPages * PageSize {
		runs = append(runs, Run{Addr: addr, Pages: entryPages})
	}
	return runs
}

// copy writes the pages as CRIU does, and gives back those that it has copied.
func (m *memory) copy(to *os.File) error {
	buffer := make([]byte, pageChunk)
	for _, r := range m.runs {
		for addr, end := r.Addr, r.Addr+r.Pages*PageSize; addr < end; {
			content := buffer[:min(end-addr, pageChunk)]
			// Beyond the end of the file there are zeros.
			clear(content)
			if _, err := unix.Pread(int(m.file.Fd()), content, int64(addr)); err != nil {
				return err
			}
			if _, err := to.Write(content); err != nil {
				return err
			}
			_ = unix.Fallocate(int(m.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(addr), int64(len(content)))
			addr += uint64(len(content))
		}
	}
	return nil
}

// Close lets go of the files.
func (m *Memories) Close() {
	for _, of := range m.of {
		_ = of.file.Close()
	}
}

// What criu/include/pagemap.h says of pages.
const (
	flagParent  = 1 << 0
	flagPresent = 1 << 2

	pagemapMagic = 0x56084025
)

// image is CRIU's name of the file that lists a memory's pages.
func (m Memory) image() string {
	if m.Shared {
		return fmt.Sprintf("pagemap-shmem-%d.img", m.ID)
	}
	return fmt.Sprintf("pagemap-%d.img", m.ID)
}

func writePagemap(path string, number uint32, runs []Run, flags uint32) error {
	head, err := proto.Marshal(&pagemap.PagemapHead{PagesId: &number})
	if err != nil {
		return err
	}
	records := [][]byte{head}
	for _, r := range runs {
		for r.Pages > 0 {
			n := min(r.Pages, entryPages)
			entry, err := proto.Marshal(&pagemap.PagemapEntry{Vaddr: proto.Uint64(r.Addr), CompatNrPages: proto.Uint32(uint32(n)), NrPages: &n, Flags: &flags})
			if err != nil {
				return err
			}
			records = append(records, entry)
			r.Addr, r.Pages = r.Addr+n*PageSize, r.Pages-n
		}
	}
	return os.WriteFile(path, compose(pagemapMagic, records), 0o644)
}
