package container

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"regexp"
	"sync"
	"sync/atomic"

	"polder/api"
	"polder/internal/crun"
)

// The wire between the two ends of a container's move is one stream of frames, version moveVersion. The source sends its
// offer, memory while the VE runs, the standing once it stands still, the rest of the memory, the images, the ending; the target answers
// with an answer to the first and to the last.
//
// A frame: kind (1 byte), length of the name (1), two zeros, length of the data (4), offset (8), all big-endian; the name; the data.
const (
	moveVersion = 3
	frameHeader = 16
)

type frameKind byte

const (
	frameMessage frameKind = 1 // JSON; no name
	frameImage   frameKind = 2 // bytes of the image file name, at offset
	// Of the memory name, see criu.Memory; numbers have 8 bytes.
	framePages frameKind = 3 // content of pages, the first at the address offset
	frameZeros frameKind = 4 // how many pages, the first at the address offset, are zeros
	frameRuns  frameKind = 5 // addresses and numbers of pages, one after the other: what there is in the end, in order
	frameApart frameKind = 6 // the same, of a memory that is restored apart: see criu.Memories
)

// Limits on what the other end may send.
const (
	messageLimit = 16 << 20
	chunkSize    = 256 << 10
	imageLimit   = 1 << 42 // bytes of one image file
)

// imageName is what CRIU calls its files: nothing else is written into the images' directory.
var imageName = regexp.MustCompile(`^[a-z][a-z0-9_.-]{0,63}\.img$`)

// frame is one frame that was read; data is valid until the next.
type frame struct {
	kind   frameKind
	name   string
	offset int64
	data   []byte
}

// frameWriter writes frames; safe for concurrent use.
type frameWriter struct {
	w     io.Writer
	bytes atomic.Int64 // written so far

	mu   sync.Mutex // one frame after the other
	head []byte
}

func (f *frameWriter) write(kind frameKind, name string, offset int64, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.head = append(f.head[:0], byte(kind), byte(len(name)), 0, 0)
	f.head = binary.BigEndian.AppendUint32(f.head, uint32(len(data)))
	f.head = binary.BigEndian.AppendUint64(f.head, uint64(offset))
	f.head = append(f.head, name...)
	if _, err := f.w.Write(f.head); err != nil {
		return err
	}
	_, err := f.w.Write(data)
	f.bytes.Add(int64(len(data)))
	return err
}

func (f *frameWriter) message(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.write(frameMessage, "", 0, data)
}

// frameReader reads frames; not for concurrent use.
type frameReader struct {
	r      io.Reader
	buffer []byte
}

func (f *frameReader) next() (frame, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return frame{}, err
	}
	kind, names := frameKind(head[0]), int(head[1])
	size, offset := int64(binary.BigEndian.Uint32(head[4:])), binary.BigEndian.Uint64(head[8:])
	switch {
	case kind == frameMessage && names == 0 && offset == 0 && size <= messageLimit:
	case kind == frameImage && names > 0 && size <= chunkSize && offset <= imageLimit:
	case kind >= framePages && kind <= frameApart && names > 0 && size <= chunkSize && offset <= math.MaxInt64:
	default:
		return frame{}, api.Errorf(api.Invalid, "move: frame of kind %d with %d bytes at %d", kind, size, offset)
	}
	if need := names + int(size); cap(f.buffer) < need {
		f.buffer = make([]byte, need)
	}
	f.buffer = f.buffer[:names+int(size)]
	if _, err := io.ReadFull(f.r, f.buffer); err != nil {
		return frame{}, err
	}
	got := frame{kind: kind, name: string(f.buffer[:names]), offset: int64(offset), data: f.buffer[names:]}
	if kind == frameImage && !imageName.MatchString(got.name) {
		return frame{}, api.Errorf(api.Invalid, "move: image %q", got.name)
	}
	return got, nil
}

// message reads a frame that must be a message.
func (f *frameReader) message(v any) error {
	got, err := f.next()
	if err != nil {
		return err
	}
	if got.kind != frameMessage {
		return api.Errorf(api.Invalid, "move: image %q where a message is due", got.name)
	}
	return decodeMessage(got.data, v)
}

func decodeMessage(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return api.Errorf(api.Invalid, "move: %w", err)
	}
	return nil
}

// offer is what the source says first: what the target must have ready.
type offer struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	IDBase  uint32 `json:"id_base"`
	IDCount uint32 `json:"id_count"`
	Cgroup  string `json:"cgroup"`
	System  bool   `json:"system"`
	Paused  bool   `json:"paused"`
}

// standing is what goes with the images, of a VE that stands still. It goes before them, for the target to get ready meanwhile.
type standing struct {
	Groups []group `json:"groups"`
	// Logs are CRIU's names of the open files that are the VE's console log.
	Logs []string `json:"logs"`
	// Log is the end of the console log.
	Log []byte `json:"log,omitempty"`
	// Iptables says that the images have tables of the old kind.
	Iptables bool      `json:"iptables,omitempty"`
	Net      netConfig `json:"net"`
	// Neighbours of each NIC.
	Neighbours []neighbour `json:"neighbours"`
	// Sysctls of the VE's network.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Watched are links that processes may watch, by inode.
	Watched map[uint64]string `json:"watched,omitempty"`
	// Runtime is what crun keeps of the container.
	Runtime crun.State      `json:"runtime"`
	Config  json.RawMessage `json:"config"`
}

// ending is what the source says last.
type ending struct {
	// Failed says that there will be nothing to restore, and why.
	Failed string `json:"failed,omitempty"`
}

func (e ending) err() error {
	if e.Failed == "" {
		return nil
	}
	return api.Errorf(api.Unavailable, "at the source: %s", e.Failed)
}

// answer is the target's answer.
type answer struct {
	Kind  api.Kind `json:"kind,omitempty"`
	Error string   `json:"error,omitempty"`
}

func answerOf(err error) answer {
	if err == nil {
		return answer{}
	}
	return answer{Kind: api.KindOf(err), Error: err.Error()}
}

func (v answer) err() error {
	if v.Error == "" {
		return nil
	}
	return api.Errorf(v.Kind, "at the target: %s", v.Error)
}
