package criu

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// Memory names what a dump takes for one address space of pages: that of a process, by its pid inside, or a piece of memory
// that processes share, by its inode, where addresses are offsets.
type Memory struct {
	Shared bool
	ID     uint64
}

const (
	ownMemory    = "pid-"
	sharedMemory = "shared-"
)

// String is the name as ParseMemory takes it.
func (m Memory) String() string {
	if m.Shared {
		return sharedMemory + strconv.FormatUint(m.ID, 10)
	}
	return ownMemory + strconv.FormatUint(m.ID, 10)
}

// ParseMemory is the opposite of String.
func ParseMemory(name string) (Memory, error) {
	id, own := strings.CutPrefix(name, ownMemory)
	if !own {
		id = strings.TrimPrefix(name, sharedMemory)
	}
	n, err := strconv.ParseUint(id, 10, 64)
	m := Memory{Shared: !own, ID: n}
	if err != nil || m.String() != name {
		return m, api.Errorf(api.Invalid, "%q names no memory", name)
	}
	return m, nil
}

// PageSink takes the pages of a dump: one memory after the other, each in the order of its addresses.
type PageSink interface {
	// Open begins a memory, which may turn out to have no pages.
	Open(m Memory) error
	// Pages are some of the memory that was opened last; content, whole pages, is good until it returns.
	Pages(addr uint64, content []byte) error
}

// Commands of the protocol (criu/page-xfer.c). The upper half of a command are flags of pages.
const (
	pageOpen  = 4
	pageAdd   = 6
	pageClose = 0x1023
	pageEnd   = 0x1024

	pagesPresent = 1 << 2 // content follows

	pageOwn, pageShared = 1, 2 // lowest byte of an id
)

// pageChunk is how much of a dump's pages is handed on at once.
const pageChunk = 256 << 10

// PageSocket makes the two ends of a connection for pages: ours is for ServePages, theirs for Options.Files, and its number there for
// CriuOpts.Ps. The caller closes both.
func PageSocket() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket for criu's pages: %w", err)
	}
	for _, fd := range fds {
		// So that criu fetches the next pages while these are looked at. Less will do.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
	}
	_ = unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "pages"), os.NewFile(uintptr(fds[1]), "pages"), nil
}

// ServePages is criu's page server for one dump: it hands all pages to the sink. It blocks until criu says that there are no more; whoever
// gives up closes conn.
func ServePages(conn io.ReadWriter, sink PageSink) error {
	s := &pageServer{conn: conn, sink: sink, buffer: make([]byte, pageChunk)}
	for {
		c, err := s.next()
		if err != nil {
			return fmt.Errorf("pages of criu: %w", err)
		}
		switch c.kind {
		case pageOpen:
			err = s.open(c)
		case pageAdd:
			err = s.add(c)
		case pageClose, pageEnd:
			_, err = conn.Write(make([]byte, 4)) // all is well
			return err
		default:
			err = api.Errorf(api.Unsupported, "criu asks its page server for %d, which this Polder does not know", c.kind)
		}
		if err != nil {
			return err
		}
	}
}

type pageServer struct {
	conn   io.ReadWriter
	sink   PageSink
	buffer []byte
	// long says that counts have 64 bits, as since criu 4.2; known from the first command on.
	long, known bool
}

type pageCommand struct {
	kind, flags    uint32
	n, addr, dstID uint64
}

func (s *pageServer) next() (c pageCommand, err error) {
	var b [32]byte
	if _, err := io.ReadFull(s.conn, b[:24]); err != nil {
		return c, err
	}
	if !s.known {
		// The first opens a memory, which has an id and nothing else: in the shorter form that is what comes last.
		s.known, s.long = true, binary.LittleEndian.Uint64(b[16:]) == 0
	}
	command := binary.LittleEndian.Uint32(b[:])
	c.kind, c.flags = command&0xffff, command>>16
	if !s.long {
		c.n, c.addr, c.dstID = uint64(binary.LittleEndian.Uint32(b[4:])), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
		return c, nil
	}
	if _, err := io.ReadFull(s.conn, b[24:]); err != nil {
		return c, err
	}
	c.n, c.addr, c.dstID = binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	return c, nil
}

func (s *pageServer) open(c pageCommand) error {
	kind := c.dstID & 0xff
	if kind != pageOwn && kind != pageShared {
		return api.Errorf(api.Unsupported, "criu dumps memory of kind %d, which this Polder does not know", kind)
	}
	if err := s.sink.Open(Memory{Shared: kind == pageShared, ID: c.dstID >> 8}); err != nil {
		return err
	}
	_, err := s.conn.Write([]byte{0}) // there is no earlier dump that it could leave pages to
	return err
}

func (s *pageServer) add(c pageCommand) error {
	if c.flags&pagesPresent == 0 {
		return api.Errorf(api.Internal, "criu leaves %d pages at %x to an earlier dump, and there is none", c.n, c.addr)
	}
	for left := c.n * PageSize; left > 0; {
		content := s.buffer[:min(left, pageChunk)]
		if _, err := io.ReadFull(s.conn, content); err != nil {
			return err
		}
		if err := s.sink.Pages(c.addr, content); err != nil {
			return err
		}
		c.addr += uint64(len(content))
		left -= uint64(len(content))
	}
	return nil
}
