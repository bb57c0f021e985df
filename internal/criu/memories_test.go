package criu

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"

	"polder/api"
)

func TestParseMemory(t *testing.T) {
	for _, m := range []Memory{{ID: 1}, {Shared: true, ID: 1 << 63}, {}} {
		if got, err := ParseMemory(m.String()); err != nil || got != m {
			t.Errorf("%v: got %v, %v", m, got, err)
		}
	}
	for _, name := range []string{"", "pid-", "pid-01", "pid--1", "pid-1x", "1", "shared-pid-1", "../pid-1"} {
		if m, err := ParseMemory(name); err == nil {
			t.Errorf("%q is %v", name, m)
		}
	}
}

// page of one byte.
func page(b byte) []byte { return bytes.Repeat([]byte{b}, PageSize) }

// read says what CRIU would restore at an address, by its own rules: pages of an image are in its file one after the other.
func read(t *testing.T, dir, name string, addr uint64) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	must(t, err)
	all, err := records(content, pagemapMagic)
	must(t, err)
	var head pagemap.PagemapHead
	must(t, proto.Unmarshal(all[0], &head))
	offset := uint64(0)
	for _, record := range all[1:] {
		var e pagemap.PagemapEntry
		must(t, proto.Unmarshal(record, &e))
		size := e.GetNrPages() * PageSize
		if uint64(e.GetCompatNrPages())*PageSize != size {
			t.Fatalf("%+v", &e)
		}
		if addr >= e.GetVaddr() && addr < e.GetVaddr()+size {
			if e.GetFlags() == flagParent {
				return read(t, filepath.Join(dir, "parent"), name, addr)
			}
			f, err := os.Open(filepath.Join(dir, (&memory{number: head.GetPagesId()}).pages()))
			must(t, err)
			defer f.Close()
			got := make([]byte, PageSize)
			if _, err := f.ReadAt(got, int64(offset+addr-e.GetVaddr())); err != nil {
				t.Fatalf("%s at %x: %v", name, addr, err)
			}
			return got
		}
		if e.GetFlags() == flagPresent {
			offset += size
		}
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMemories(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "memories") // few other file systems have files that large
	must(t, err)
	defer os.RemoveAll(dir)
	m, err := NewMemories(dir)
	must(t, err)
	defer m.Close()
	const high = 0x7ffd_1234_5000
	one, shared, apart := Memory{ID: 1}, Memory{Shared: true, ID: 1}, Memory{ID: 2}
	must(t, m.Write(one, high, append(page('a'), page('b')...)))
	must(t, m.Write(shared, 0, page('s')))
	must(t, m.Write(one, 0x400000, page('c')))
	must(t, m.Write(one, high+PageSize, page('B'))) // again
	must(t, m.Write(one, high+4*PageSize, page('x')))
	must(t, m.Zero(one, Run{high + 4*PageSize, 1}))
	must(t, m.Write(one, high+5*PageSize, page('y')))
	must(t, m.Has(one, []Run{{0x400000, 1}, {high, 2}, {high + 4*PageSize, 2}}, false))
	must(t, m.Has(shared, []Run{{0, 1}}, false))
	must(t, m.Write(apart, 0x1000, page('p')))
	must(t, m.Write(apart, 0x5000, page('q')))
	must(t, m.Has(apart, []Run{{0x1000, 1}}, true))
	must(t, m.Has(apart, []Run{{0x5000, 2}}, false))
	must(t, m.Finish())
	for _, c := range []struct {
		image string
		addr  uint64
		want  []byte
	}{
		{"pagemap-1.img", 0x400000, page('c')},
		{"pagemap-1.img", 0x401000, nil},
		{"pagemap-1.img", high, page('a')},
		{"pagemap-1.img", high + PageSize, page('B')},
		{"pagemap-1.img", high + 2*PageSize, nil},
		{"pagemap-1.img", high + 4*PageSize, page(0)},
		{"pagemap-1.img", high + 5*PageSize, page('y')},
		{"pagemap-shmem-1.img", 0, page('s')},
		{"pagemap-2.img", 0x1000, page('p')},
		{"pagemap-2.img", 0x2000, nil},
		{"pagemap-2.img", 0x5000, page('q')},
		{"pagemap-2.img", 0x6000, page(0)},
	} {
		if got := read(t, dir, c.image, c.addr); !bytes.Equal(got, c.want) {
			t.Errorf("%s at %x: got %.8q, want %.8q", c.image, c.addr, got, c.want)
		}
	}
	for _, err := range []error{
		m.Write(one, 1, page('a')), m.Write(one, 1<<addressBits, page('a')), m.Write(one, 1<<63, page('a')), m.Write(one, 0, []byte("a")),
		m.Zero(one, Run{0, 1 << 60}), m.Has(one, []Run{{0x400000, 1}}, false), m.Has(shared, []Run{{0x1000, 1 << 62}}, false),
	} {
		if api.KindOf(err) != api.Invalid {
			t.Errorf("got %v", err)
		}
	}
}

// pageLog is a sink that keeps everything.
type pageLog struct {
	at    Memory
	pages map[Memory]map[uint64]byte
}

func (l *pageLog) Open(m Memory) error {
	l.at, l.pages[m] = m, map[uint64]byte{}
	return nil
}

func (l *pageLog) Pages(addr uint64, content []byte) error {
	for ; len(content) > 0; addr, content = addr+PageSize, content[PageSize:] {
		l.pages[l.at][addr] = content[0]
	}
	return nil
}

// dumper is criu's end of the protocol, as of 4.2 and as before.
type dumper struct {
	conn net.Conn
	long bool
}

func (d dumper) say(command uint32, n, addr, id uint64) {
	b := binary.LittleEndian.AppendUint32(nil, command)
	if d.long {
		b = binary.LittleEndian.AppendUint32(b, 0xdead) // whatever is in the gap
		b = binary.LittleEndian.AppendUint64(b, n)
	} else {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	b = binary.LittleEndian.AppendUint64(b, addr)
	_, _ = d.conn.Write(binary.LittleEndian.AppendUint64(b, id))
}

func TestServePages(t *testing.T) {
	for _, long := range []bool{false, true} {
		ours, theirs := net.Pipe()
		d := dumper{conn: theirs, long: long}
		go func() {
			answer := make([]byte, 4)
			d.say(pageOpen, 0, 0, 7<<8|pageOwn)
			_, _ = theirs.Read(answer[:1])
			d.say(pagesPresent<<16|pageAdd, 100, 0x400000, 7<<8|pageOwn)
			_, _ = theirs.Write(bytes.Repeat(page('x'), 100))
			d.say((pagesPresent|2)<<16|pageAdd, 1, 0x7ffd12345000, 7<<8|pageOwn)
			_, _ = theirs.Write(page('y'))
			d.say(pageOpen, 0, 0, 9<<8|pageShared)
			_, _ = theirs.Read(answer[:1])
			d.say(pageEnd, 0, 0, 0)
			_, _ = theirs.Read(answer)
		}()
		log := &pageLog{pages: map[Memory]map[uint64]byte{}}
		must(t, ServePages(ours, log))
		own := log.pages[Memory{ID: 7}]
		if len(log.pages) != 2 || log.pages[Memory{Shared: true, ID: 9}] == nil || len(own) != 101 || own[0x400000+99*PageSize] != 'x' || own[0x7ffd12345000] != 'y' {
			t.Errorf("long %v: got %d memories, %d pages", long, len(log.pages), len(own))
		}
	}
}

func TestServePagesRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		say  func(d dumper)
		want api.Kind
	}{
		"other memory":    {func(d dumper) { d.say(pageOpen, 0, 0, 7<<8|3) }, api.Unsupported},
		"other command":   {func(d dumper) { d.say(5, 0, 0, 7<<8|pageOwn) }, api.Unsupported},
		"earlier dump":    {func(d dumper) { d.say(1<<16|pageAdd, 1, 0, 7<<8|pageOwn) }, api.Internal},
		"a broken socket": {func(d dumper) { d.conn.Close() }, ""},
	} {
		ours, theirs := net.Pipe()
		go c.say(dumper{conn: theirs, long: true})
		err := ServePages(ours, &pageLog{pages: map[Memory]map[uint64]byte{}})
		if err == nil || c.want != "" && api.KindOf(err) != c.want {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestPagemapIsCompatible(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pagemap")
	must(t, writePagemap(path, 3, []Run{{0, 3 * entryPages}}, flagPresent))
	content, err := os.ReadFile(path)
	must(t, err)
	all, err := records(content, pagemapMagic)
	must(t, err)
	var got []uint64
	for _, record := range all[1:] {
		var e pagemap.PagemapEntry
		must(t, proto.Unmarshal(record, &e))
		got = append(got, e.GetVaddr(), uint64(e.GetCompatNrPages()))
	}
	if want := []uint64{0, entryPages, entryPages * PageSize, entryPages, 2 * entryPages * PageSize, entryPages}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %x", got)
	}
}
