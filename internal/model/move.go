package model

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"polder/api"
)

// Mover is a model whose running VEs can be moved to another host with their memory.
//
// The two ends of a move run at the same time: Send on the host that the VE leaves, Receive on the one it comes to, joined
// by a Session. When both have returned without an error the VE stands still twice: whole at the source, cut off from its
// network, and whole at the target, plugged in but with its NICs' gates shut (Plug.Gate). Which of the two goes on is then for
// the caller to decide, by one record in the store: Enter at the target, or Keep at the source; the other one is
// discarded with Stop. Never do two go on.
type Mover interface {
	// Blockers names what in a running VE can't be carried; empty: it can be moved. It does not disturb the VE.
	Blockers(ctx context.Context, ve Spec) ([]api.Blocker, error)
	// Needs says what the target must have for this VE, for Fits to judge there: CPU model, versions, features. JSON.
	Needs(ctx context.Context, ve Spec) ([]byte, error)
	// Fits says at the target what of Needs it has not; empty: all is there.
	Fits(ctx context.Context, needs []byte) ([]api.Blocker, error)
	// Load measures what decides how a VE can be moved; it takes at most d.
	Load(ctx context.Context, ve Spec, d time.Duration) (Load, error)

	// Send copies the running VE to the other end, until it stands still here. An error, or a crash of the daemon, leaves it to
	// Keep to make the VE go on.
	Send(ctx context.Context, ve Spec, s Session, o SendOptions) (Sent, error)
	// Receive makes the VE of what Send sends, up to where it stands still and could go on at once. ve.Root is empty when its
	// volume is still on its way: then it is what o.Volume gives. After an error Stop and Remove leave nothing.
	Receive(ctx context.Context, ve Spec, s Session, o ReceiveOptions) error
	// Keep lets a VE go on at the source, whatever Send has done to it. A VE that was not touched runs on. Idempotent.
	Keep(ctx context.Context, ve Spec) (Process, error)
	// Enter lets a received VE go on at the target: opens its gates, announces it. Idempotent, also after a crash of the daemon;
	// of a VE that runs it only returns the Process.
	Enter(ctx context.Context, ve Spec) (Process, error)
}

// Follower is a Mover whose VEs can go on at the target before their memory is there: it follows (post-copy).
//
// Up to the record in the store all is as with a Mover: the VE stands still, Keep lets it go on at the source. After it the source
// Serves while the target Enters, until the target has Gathered all. From the VE's first moment there until then it is in neither
// place whole: it is lost when either end dies.
type Follower interface {
	Mover
	// CanFollow is why VEs can't come to this host in that way: nil when they can.
	CanFollow() error
	// Serve lets the source send to the target what is still missing, which goes on by itself from then on. It returns when it does,
	// or when all was sent, with the bytes that the memory has taken so far. To is where the target Gathers after the connection
	// broke, "" the first time. Idempotent.
	Serve(ctx context.Context, ve Spec, to string) (api.Bytes, error)
	// Gather waits until all of a VE that has Entered is there. When the connection breaks it listens anew and calls again with
	// where, for the source to Serve there; an error of that is tried again until ctx ends. Idempotent, also after a crash of the
	// daemon.
	Gather(ctx context.Context, ve Spec, again func(ctx context.Context, to string) error) error
}

// Carrier is a model that keeps more of a VE than its volume.
type Carrier interface {
	// Carried names the files in Spec.Dir that go along when the VE is moved without its memory; they need not be there. All
	// together have at most a few MiB.
	Carried(ve Spec) []string
}

// Load is what decides how long a move takes.
type Load struct {
	Memory    api.Bytes // that has to be carried
	Room      api.Bytes // of memory that it takes at the target until it has gone on there
	DirtyRate api.Bytes // of memory written anew, per second; -1: can't be measured here
	Processes int       // of a container
	Throttle  bool      // it can be slowed down until the link keeps up
	PostCopy  bool      // memory can follow later: see Follower
	Mirrored  bool      // its volume is a disk that Send keeps alike at both ends: the pool has nothing to send
}

// SendOptions say how to send.
type SendOptions struct {
	// Mode is api.Live or api.Warm: warm pauses the VE first.
	Mode api.MoveMode
	// MaxDowntime is the outage to aim at; 0: 300 ms.
	MaxDowntime time.Duration
	// Bandwidth in bytes per second; 0: no limit.
	Bandwidth api.Bytes
	// PostCopy is for a Follower: Send returns when the VE stands still, with the last of it and what is left of its memory still to
	// be Served. At the target all else is there.
	PostCopy bool
	// Still is called once the VE stands still and before its memory's last set is sent, or beside that: it sends what
	// changed in the volume. A VM whose disk is mirrored by QEMU has nothing of that and may leave it uncalled. Not nil.
	Still func(ctx context.Context) error
	// Ahead is called when memory was copied ahead and the VE is about to stand still: what has changed in the volume meanwhile is better sent
	// now than then. nil: nothing to do.
	Ahead func(ctx context.Context) error
	// Changes lists, in order, where a VM's disk may differ from that which the other end begins with; known is false when it has to be
	// compared. What is written from the call on may be missing. nil: not known.
	Changes func(ctx context.Context) (changes []Span, known bool, err error)
	// Progress may be called at any time; total 0: not known.
	Progress func(done, total int64, unit string)
}

// Span is the bytes of a disk from Start up to End.
type Span struct{ Start, End int64 }

// ReceiveOptions say how to receive.
type ReceiveOptions struct {
	// Volume blocks until the volume is complete, and says where it is. A VM whose disk is mirrored has it at once. Not nil.
	Volume func(ctx context.Context) (Root, error)
}

// Sent says what was sent, and how.
type Sent struct {
	Bytes api.Bytes
	// Still is when the VE began to stand still.
	Still time.Time
	// Way in words, for the operation's result: "pre-copy, 3 rounds", "post-copy".
	Way string
}

// Session joins the two ends of one move. Streams are reliable, private and authenticated; each name is used once. It counts
// and limits what goes through it.
type Session interface {
	// Stream opens the stream name, at both ends: it blocks until the other end has called it too, or ctx ends.
	Stream(ctx context.Context, name string) (Stream, error)
	// Peer is the other host's address, for a tool that makes connections by itself.
	Peer() netip.Addr
	// Local is this host's address by which the other end reaches it.
	Local() netip.Addr
	// Secret is 32 random bytes that only the two ends of this move know: the key for such connections.
	Secret() []byte
	// Count adds bytes that a tool has sent by itself.
	Count(n api.Bytes)
}

// Stream is one two-way stream of a session.
type Stream interface {
	net.Conn
	// CloseWrite ends what this end sends; the other one reads io.EOF.
	CloseWrite() error
	// File is one end of a socket pair whose other end is copied to and from the stream: for a tool that is given a socket. The
	// caller closes it; the stream itself must not be used any more.
	File() (*os.File, error)
}
