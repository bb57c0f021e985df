package container

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"polder/api"
	"polder/internal/criu"
	"polder/internal/model"
)

// memory is the source's end of how a VE's memory is carried: it knows what of each page the other end has, and sends what differs from that. While
// the VE runs, its processes' memory is read from outside, round by round; when it stands still, CRIU's dump hands over all pages
// that there are, and few of them have changed. So nothing has to tell which pages a VE writes, which many kernels can't.
type memory struct {
	out  *frameWriter
	key  uint64
	of   map[criu.Memory]map[uint64]*region // by number
	sent api.Bytes                          // of pages
	// Of the dump: the memory that is open, and its pages so far.
	at   criu.Memory
	runs []criu.Run
	// apart are those that CRIU would not restore from an earlier dump: see restoredApart.
	apart map[criu.Memory]bool
	head  []byte
}

// digest of a page's content, by a key that is this move's: equal for two that differ in one of 2^128 cases. The zero value is that of zeros.
type digest = xxh3.Uint128

// region is the digests of regionPages pages in a row.
type region [regionPages]digest

const regionPages = 512

func newMemory(out *frameWriter) *memory {
	return &memory{out: out, key: rand.Uint64(), of: map[criu.Memory]map[uint64]*region{}, apart: map[criu.Memory]bool{}}
}

// known is the digest of what the other end has at an address.
func (m *memory) known(name criu.Memory, addr uint64) *digest {
	of := m.of[name]
	if of == nil {
		of = map[uint64]*region{}
		m.of[name] = of
	}
	page := addr / criu.PageSize
	r := of[page/regionPages]
	if r == nil {
		r = &region{}
		of[page/regionPages] = r
	}
	return &r[page%regionPages]
}

// digestOf a page.
func (m *memory) digestOf(page []byte) digest {
	if string(page) == string(zeroPage[:]) {
		return digest{}
	}
	return xxh3.Hash128Seed(page, m.key)
}

var zeroPage [criu.PageSize]byte

// send sends what of some pages the other end has not.
func (m *memory) send(name criu.Memory, addr uint64, content []byte) error {
	var row, zeros uint64 // bytes before at that are to be sent, or to be made zeros
	at := uint64(0)
	flush := func() error {
		from := at - row - zeros
		defer func() { row, zeros = 0, 0 }()
		switch {
		case row > 0:
			m.sent += api.Bytes(row)
			return m.out.write(framePages, name.String(), int64(addr+from), content[from:from+row])
		case zeros > 0:
			return m.out.write(frameZeros, name.String(), int64(addr+from), m.numbers(zeros/criu.PageSize))
		}
		return nil
	}
	for ; at < uint64(len(content)); at += criu.PageSize {
		page := content[at : at+criu.PageSize]
		old, now := m.known(name, addr+at), m.digestOf(page)
		zero := now == digest{}
		if now == *old || zero && row > 0 || !zero && zeros > 0 {
			if err := flush(); err != nil {
				return err
			}
		}
		switch {
		case now == *old:
			continue
		case zero:
			zeros += criu.PageSize
		default:
			row += criu.PageSize
		}
		*old = now
	}
	return flush()
}

// numbers as they go over the wire.
func (m *memory) numbers(all ...uint64) []byte {
	m.head = m.head[:0]
	for _, n := range all {
		m.head = binary.BigEndian.AppendUint64(m.head, n)
	}
	return m.head
}

// ahead copies the memory of a VE that runs, round by round, until what is left takes no longer than wanted. It says how.
func (m *memory) ahead(ctx context.Context, ve model.Spec, wanted time.Duration, progress func(done int64)) (way string, err error) {
	b := &brake{group: cgroupOf(ve)}
	defer func() { err = errors.Join(err, b.release()) }()
	p := pace{wanted: wanted}
	for {
		before, begun := m.sent, time.Now()
		if err := m.round(ctx, ve, progress); err != nil {
			return "", err
		}
		again, slower := p.next(m.sent-before, time.Since(begun))
		if !again {
			return p.String(), nil
		}
		if slower {
			b.press(p.brake)
		}
	}
}

func (m *memory) round(ctx context.Context, ve model.Spec, progress func(done int64)) error {
	pids, err := pidsOf(ve)
	if err != nil {
		return err
	}
	r := newReader()
	seen := map[criu.Memory]bool{} // shared memory is read once
	for _, pid := range pids {
		all, err := mappings(pid)
		if err != nil {
			return err
		}
		shared := map[criu.Memory]bool{}
		for _, at := range all {
			if at.shared && seen[at.memory] {
				continue
			}
			shared[at.memory] = at.shared
			err := r.runs(pid, at, func(addr, size uint64) error {
				progress(m.out.bytes.Load())
				return r.read(pid, addr, size, func(addr uint64, content []byte) error {
					if err := ctx.Err(); err != nil {
						return err
					}
					return m.send(at.memory, at.base+addr-at.start, content)
				})
			})
			if err != nil {
				return err
			}
		}
		for name, is := range shared {
			seen[name] = seen[name] || is
		}
	}
	return nil
}

// stands looks once more at a VE that stands still.
func (m *memory) stands(ve model.Spec) error {
	pids, err := pidsOf(ve)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		inside, err := insidePID(pid)
		if err != nil {
			return fmt.Errorf("process %d in its control group: %w", pid, err)
		}
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(content)) {
			if restoredApart(line) {
				m.apart[criu.Memory{ID: inside}] = true
			}
		}
	}
	return nil
}

// Open begins a memory of the dump.
func (m *memory) Open(name criu.Memory) error {
	if err := m.close(); err != nil {
		return err
	}
	m.at, m.runs = name, nil
	return m.tell(name, nil)
}

// Pages are those of the dump.
func (m *memory) Pages(addr uint64, content []byte) error {
	n := uint64(len(content)) / criu.PageSize
	if last := len(m.runs) - 1; last >= 0 && m.runs[last].Addr+m.runs[last].Pages*criu.PageSize == addr {
		m.runs[last].Pages += n
	} else {
		m.runs = append(m.runs, criu.Run{Addr: addr, Pages: n})
	}
	return m.send(m.at, addr, content)
}

// close says which pages the memory that is open has.
func (m *memory) close() error {
	const most = chunkSize / 16
	for len(m.runs) > 0 {
		n := min(len(m.runs), most)
		if err := m.tell(m.at, m.runs[:n]); err != nil {
			return err
		}
		m.runs = m.runs[n:]
	}
	return nil
}

func (m *memory) tell(name criu.Memory, runs []criu.Run) error {
	numbers := make([]uint64, 0, 2*len(runs))
	for _, r := range runs {
		numbers = append(numbers, r.Addr, r.Pages)
	}
	kind := frameRuns
	if m.apart[name] {
		kind = frameApart
	}
	return m.out.write(kind, name.String(), 0, m.numbers(numbers...))
}
