package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"polder/api"
	"polder/internal/model"
)

const (
	// moveVersion is that of what the two ends of a move say to each other.
	moveVersion = 1
	// controlStream and diskStream are the session's streams that a move uses.
	controlStream = "vm"
	diskStream    = "vm-disk"
	// beat is how often an end says that it is there, and patience how long it may be silent: a link that is cut for ten seconds
	// need not end a move.
	beat     = time.Second
	patience = 15 * time.Second
	// longestNote bounds one note, in bytes: the first carries the UEFI variables and the end of the console's log.
	longestNote = 8 << 20
)

// note is what one end of a move says to the other. Kinds, in their order:
//
//	hello   source: what the target needs to start QEMU
//	ready   target: where its QEMU listens
//	still   source: the VE stands still, its disk is complete
//	alone   source: it has let go of the target's disk
//	go      target: nothing writes to the disk any more: send the last of the memory (with post-copy: it is sent by Serve)
//	whole   target: everything has arrived, save for what follows
//	done    source: it knows
//	failed  either: why it gives up
//	beat    either: it is there
type note struct {
	Kind  string `json:"kind"`
	Hello *hello `json:"hello,omitempty"`
	Ready *ready `json:"ready,omitempty"`
	Log   []byte `json:"log,omitempty"` // still: what the console said since
	Text  string `json:"text,omitempty"`
}

// hello is what the target needs to start QEMU for the VE.
type hello struct {
	Version     int             `json:"version"`
	Machine     json.RawMessage `json:"machine"` // machine.json
	Accelerator string          `json:"accelerator"`
	Paused      bool            `json:"paused"`
	Format      string          `json:"format"` // of the disk
	Backed      bool            `json:"backed"` // it is a qcow2 image on top of a base
	Vars        []byte          `json:"vars,omitempty"`
	Seed        []byte          `json:"seed,omitempty"`
	Log         []byte          `json:"log,omitempty"` // the end of the console's
	Channels    int             `json:"channels"`      // for the memory
	PostCopy    bool            `json:"post_copy"`     // it follows
}

// ready says where the target's QEMU listens, and how the disk is to come.
type ready struct {
	DiskPort   string   `json:"disk_port"`
	MemoryPort string   `json:"memory_port"`
	Disk       diskMode `json:"disk"`
}

// diskMode is how a disk is copied.
type diskMode string

const (
	diskDelta diskMode = "delta" // what differs, then what is written
	diskTop   diskMode = "top"   // what lies over the base, which both have
	diskFull  diskMode = "full"
)

// wire is the conversation of a move's two ends. Its context ends when the other end fails, falls silent or hangs up.
type wire struct {
	s     model.Stream
	notes chan note
	fail  context.CancelCauseFunc
	over  sync.WaitGroup

	mu sync.Mutex // keeps notes whole
}

// talk opens the conversation; close ends it.
func talk(ctx context.Context, session model.Session) (context.Context, *wire, error) {
	s, err := session.Stream(ctx, controlStream)
	if err != nil {
		return ctx, nil, err
	}
	ctx, fail := context.WithCancelCause(ctx)
	w := &wire{s: s, notes: make(chan note, 4), fail: fail}
	w.over.Add(2)
	go func() { defer w.over.Done(); w.listen() }()
	go func() { defer w.over.Done(); w.keepUp(ctx) }()
	return ctx, w, nil
}

// close ends the conversation; err, if any, is told to the other end.
func (w *wire) close(err error) {
	if err != nil {
		_ = w.say(note{Kind: "failed", Text: err.Error()})
	}
	w.fail(context.Canceled)
	_ = w.s.Close()
	w.over.Wait()
}

func (w *wire) listen() {
	in := bufio.NewReaderSize(w.s, 64<<10)
	for {
		_ = w.s.SetReadDeadline(time.Now().Add(patience))
		n, err := readNote(in)
		if err != nil {
			w.fail(api.Errorf(api.Unavailable, "the other host does not answer: %w", err))
			return
		}
		switch n.Kind {
		case "beat":
		case "failed":
			w.fail(fmt.Errorf("the other host: %s", n.Text))
			return
		default:
			select {
			case w.notes <- n:
			default:
				w.fail(fmt.Errorf("the other host talks out of turn: %q", n.Kind))
				return
			}
		}
	}
}

func readNote(r *bufio.Reader) (n note, err error) {
	var text []byte
	for {
		part, err := r.ReadSlice('\n')
		text = append(text, part...)
		if len(text) > longestNote {
			return n, errors.New("it says too much")
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	return n, json.Unmarshal(text, &n)
}

func (w *wire) keepUp(ctx context.Context) {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := w.say(note{Kind: "beat"}); err != nil {
				w.fail(api.Errorf(api.Unavailable, "the other host does not listen: %w", err))
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (w *wire) say(n note) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.s.SetWriteDeadline(time.Now().Add(patience))
	_, err = w.s.Write(append(data, '\n'))
	return err
}

// hear waits for the next note, which must be of the kind.
func (w *wire) hear(ctx context.Context, kind string) (note, error) {
	var n note
	select {
	case n = <-w.notes:
	case <-ctx.Done():
		select {
		case n = <-w.notes: // its last word
		default:
			return n, context.Cause(ctx)
		}
	}
	if n.Kind != kind {
		return n, fmt.Errorf("the other host said %q where %q was due", n.Kind, kind)
	}
	return n, nil
}

// lastWord is how long an end waits for the other one's word on what went wrong: its connections break before that is heard.
const lastWord = 200 * time.Millisecond

// reason is what the other end says of an error that was seen here, or that error.
func (w *wire) reason(ctx context.Context, err error) error {
	timer := time.NewTimer(lastWord)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return err
	}
}
