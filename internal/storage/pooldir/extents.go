package pooldir

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/fiemap.h.
const (
	fiemapSync      = 0x1
	extentUnwritten = 0x800
	// extentOpaque are flags of extents whose place says nothing about their content: unknown, not allocated yet, compressed, encrypted, inline or
	// packed.
	extentOpaque = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
)

// piece is a span of a file of which all is in one place.
type piece struct {
	span
	shift  int64 // of its place on the disk to its place in the file
	opaque bool
}

// written lists the pieces of a file that have content, in order. All else reads as zeros.
func written(f *os.File) ([]piece, error) {
	var list []piece
	m := fiemap{length: ^uint64(0), count: fiemapBatch, flags: fiemapSync}
	for {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapIoctl, uintptr(unsafe.Pointer(&m))); errno != 0 {
			return nil, fmt.Errorf("extents of %s: %w", f.Name(), errno)
		}
		if m.mapped == 0 {
			return list, nil
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&extentUnwritten == 0 {
				list = append(list, piece{
					span:  span{int64(e.logical), int64(e.logical + e.length)},
					shift: int64(e.physical) - int64(e.logical), opaque: e.flags&extentOpaque != 0,
				})
			}
		}
		last := m.extents[m.mapped-1]
		if last.flags&extentLast != 0 {
			return list, nil
		}
		m.start = last.logical + last.length
		m.length = ^uint64(0) - m.start
	}
}

// changed lists what of a file of this size, made of the pieces now, may differ from one that was made of the pieces before: data has content, zeros has
// none any more. Both shared their extents at some time and have been there since: what is in the same place is the same.
func changed(before, now []piece, size int64) (data, zeros []span) {
	for pos := int64(0); pos < size; {
		var old, cur *piece
		end := size
		old, before, end = pieceAt(before, pos, end)
		cur, now, end = pieceAt(now, pos, end)
		switch {
		case cur == nil && old != nil:
			zeros = appendSpan(zeros, span{pos, end})
		case cur != nil && (old == nil || old.opaque || cur.opaque || old.shift != cur.shift):
			data = appendSpan(data, span{pos, end})
		}
		pos = end
	}
	return data, zeros
}

// pieceAt is the piece at pos, nil where there is none; the list from there on; and how far, at most to end, that holds.
func pieceAt(list []piece, pos, end int64) (*piece, []piece, int64) {
	for len(list) > 0 && list[0].end <= pos {
		list = list[1:]
	}
	if len(list) == 0 {
		return nil, list, end
	}
	if list[0].start > pos {
		return nil, list, min(end, list[0].start)
	}
	return &list[0], list, min(end, list[0].end)
}

func appendSpan(list []span, s span) []span {
	if n := len(list); n > 0 && list[n-1].end == s.start {
		list[n-1].end = s.end
		return list
	}
	return append(list, s)
}
