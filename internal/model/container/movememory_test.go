package container

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/criu"
)

// ends are the two ends of a move's memory and images, joined.
type ends struct {
	dir    string // of the images at the target
	out    *frameWriter
	memory *memory
	wire   bytes.Buffer
	in     *imageWriter
}

func newEnds(t *testing.T) *ends {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "move") // as the images' own: files as large as an address space
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &ends{dir: dir}
	e.out = &frameWriter{w: &e.wire}
	e.memory = newMemory(e.out)
	if e.in, err = newImageWriter(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.in.memory.Close)
	return e
}

// arrive has the target read all that was sent, and says how many bytes that were.
func (e *ends) arrive(t *testing.T) int {
	t.Helper()
	n := e.wire.Len()
	for in := (&frameReader{r: &e.wire}); ; {
		f, err := in.next()
		if err == io.EOF {
			return n
		}
		if err == nil {
			err = e.in.write(f)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestImagesArrive(t *testing.T) {
	e, from := newEnds(t), t.TempDir()
	for name, size := range map[string]int{"tmpfs-1.tar.gz.img": 2*chunkSize + 5, "core-1.img": 4, "empty.img": 0, "whole.img": chunkSize, "route-9.img": 5, "dump.log": 3} {
		mustWrite(t, from, name, string(bytes.Repeat([]byte("x"), size)))
	}
	must(t, sendImages(from, e.out, func(name string) bool { return carriedElsewhere(name, false) }))
	e.arrive(t)
	for name, size := range map[string]int64{"tmpfs-1.tar.gz.img": 2*chunkSize + 5, "core-1.img": 4, "empty.img": 0, "whole.img": chunkSize, "route-9.img": -1, "dump.log": -1} {
		info, err := os.Stat(filepath.Join(e.dir, name))
		if err == nil && info.Size() != size || err != nil && size >= 0 {
			t.Errorf("%s: want %d bytes: %v, %v", name, size, info, err)
		}
	}
}

// Memory that is written to between the rounds arrives as it was in the end, and what did not change is not sent again.
func TestMemoryArrives(t *testing.T) {
	e := newEnds(t)
	name, base := criu.Memory{ID: 7}, uint64(0x7ffd_0000_0000)
	r := rand.New(rand.NewPCG(1, 2))
	now := make([]byte, 100*criu.PageSize)
	for round := range 20 {
		for range 30 {
			page := now[r.IntN(100)*criu.PageSize:][:criu.PageSize]
			clear(page)
			if r.IntN(3) > 0 {
				page[r.IntN(len(page))] = byte(1 + r.IntN(3))
			}
		}
		must(t, e.memory.send(name, base, now))
		if n := e.arrive(t); round > 0 && n > 35*criu.PageSize {
			t.Errorf("round %d took %d bytes", round, n)
		}
		must(t, e.memory.send(name, base, now))
		if n := e.arrive(t); n > 0 {
			t.Errorf("%d bytes for what has not changed", n)
		}
	}
	must(t, e.memory.Open(name))
	must(t, e.memory.Pages(base, now[:60*criu.PageSize]))
	must(t, e.memory.Pages(base+60*criu.PageSize, now[60*criu.PageSize:]))
	must(t, e.memory.close())
	e.arrive(t)
	must(t, e.in.memory.Finish())
	f, err := os.Open(filepath.Join(e.dir, "earlier", "pages-1.img"))
	must(t, err)
	defer f.Close()
	got := make([]byte, len(now))
	if _, err := f.ReadAt(got, int64(base)); err != nil && err != io.EOF || !bytes.Equal(got, now) {
		t.Errorf("other memory arrived: %v", err)
	}
}

func TestImageWriterRefuses(t *testing.T) {
	for _, f := range []frame{
		{kind: framePages, name: "core-1.img", data: make([]byte, criu.PageSize)},
		{kind: framePages, name: "pid-1", offset: 1, data: make([]byte, criu.PageSize)},
		{kind: framePages, name: "pid-1", offset: 1 << 62, data: make([]byte, criu.PageSize)},
		{kind: frameZeros, name: "pid-1"},
		{kind: frameZeros, name: "pid-1", data: bytes.Repeat([]byte{0xff}, 8)},
		{kind: frameRuns, name: "pid-1", data: make([]byte, 8)},
		{kind: frameRuns, name: "pid-1", data: bytes.Repeat([]byte{0xff}, 16)},
	} {
		if err := newEnds(t).in.write(f); api.KindOf(err) != api.Invalid {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

func TestParseMapping(t *testing.T) {
	own, shared := criu.Memory{ID: 7}, criu.Memory{Shared: true, ID: 1034}
	for line, want := range map[string]mapping{
		"55d8c000-55d8d000 r-xp 00002000 fe:00 1234                       /usr/bin/a b":         {start: 0x55d8c000, end: 0x55d8d000, memory: own, base: 0x55d8c000},
		"7f00-8f00 rw-p 00000000 00:00 0 ":                                                      {start: 0x7f00, end: 0x8f00, memory: own, base: 0x7f00},
		"7f3000-7f5000 rw-s 00001000 00:01 1034                           /dev/zero (deleted)":  {start: 0x7f3000, end: 0x7f5000, memory: shared, base: 0x1000, shared: true},
		"7f3000-7f5000 rw-s 00000000 00:01 1034                           /memfd:x y (deleted)": {start: 0x7f3000, end: 0x7f5000, memory: shared, shared: true},
		"7f3000-7f5000 rw-s 00000000 fe:00 1034                           /var/lib/db":          {},
		"7f3000-7f5000 ---p 00000000 00:00 0 ":                                                  {},
		"7ffd3000-7ffd5000 r-xp 00000000 00:00 0                          [vdso]":               {},
		"7f200000-7f400000 rw-p 00000000 00:0f 99                         " + hugePages:         {},
		"0-100000000000 rw-p 00000000 00:00 0 ":                                                 {},
		"nonsense":                                                                              {},
		"":                                                                                      {},
	} {
		got, ok := parseMapping(line, 7)
		if ok != (want != mapping{}) || ok && got != want {
			t.Errorf("%s: got %+v, %v", line, got, ok)
		}
	}
}

func TestRestoredApart(t *testing.T) {
	for line, want := range map[string]bool{
		"7f0000000000-7f0080000000 ---p 00000000 00:00 0 ":              false,
		"7f0000000000-7f0080001000 ---p 00000000 00:00 0 ":              true,
		"7f0000000000-7f0080001000 r--p 00000000 fe:00 9  /usr/lib/big": true,
		"7f0000000000-7f0400000000 rw-p 00000000 00:00 0 ":              false,
		"7f0000000000-7f0400001000 rw-p 00000000 00:00 0 ":              true,
		"7f0000000000-7f0400001000 rw-s 00000000 00:01 9  /dev/zero":    false,
		"7f200000-7f400000 rw-p 00000000 00:0f 99 " + hugePages:         true,
		"nonsense": false,
		"":         false,
	} {
		if got := restoredApart(line); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

// What a process has written is found, and nothing else of a mapping.
func TestReaderReadsWhatIsThere(t *testing.T) {
	mem, err := unix.Mmap(-1, 0, 64*criu.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(mem)
	must(t, unix.Madvise(mem, unix.MADV_NOHUGEPAGE))
	start := uint64(uintptr(unsafe.Pointer(&mem[0])))
	for _, page := range []int{3, 4, 5, 40, 63} {
		mem[page*criu.PageSize+1] = byte(page)
	}
	at := mapping{start: start, end: start + uint64(len(mem)), base: start}
	r, got := newReader(), map[uint64]byte{}
	must(t, r.runs(os.Getpid(), at, func(addr, size uint64) error {
		return r.read(os.Getpid(), addr, size, func(addr uint64, content []byte) error {
			for i := 0; i < len(content); i += criu.PageSize {
				got[(addr-start+uint64(i))/criu.PageSize] = content[i+1]
			}
			return nil
		})
	}))
	want := map[uint64]byte{3: 3, 4: 4, 5: 5, 40: 40, 63: 63}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	for page, b := range want {
		if got[page] != b {
			t.Errorf("page %d is %d", page, got[page])
		}
	}
}
