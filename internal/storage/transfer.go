package storage

import (
	"context"
	"io"

	"polder/api"
)

// Sender copies volumes and bases to another host's pool of the same driver.
//
// A volume is sent in rounds while it is in use: round 0 is all of it (all that differs from its base, where the other pool
// has that base from here or both have it from one place), each further round what changed since the one before. At the
// receiver it is invisible until FinishReceive. Both ends keep what they need between rounds until EndTransfer or FinishReceive. All methods are
// idempotent per round: a round that was cut off is sent again from its beginning.
type Sender interface {
	// TransferFormat names the form of the stream, with its version: "btrfs-1". Pools with different ones can't exchange anything.
	TransferFormat() string
	// BaseOrigin identifies the content of a base across pools: where it was made first. Equal origins at both ends let a volume
	// be sent as what differs. "" when the base is not there.
	BaseOrigin(ctx context.Context, id string, kind Kind) (string, error)

	SendBase(ctx context.Context, id string, kind Kind, w io.Writer) error
	// ReceiveBase makes a base of what SendBase wrote, with the same origin, and reads r to its end before the base becomes visible; one that
	// exists is left alone, and r is read to its end.
	ReceiveBase(ctx context.Context, id string, kind Kind, r io.Reader) error

	// SendRound writes round n of the volume t.ID to w. The content is that of the moment at which
	// it was called, as after a power cut: whoever uses the volume has to stand still, and be synced, for a consistent one.
	SendRound(ctx context.Context, t Transfer, n int, w io.Writer) error
	// ReceiveRound reads round n.
	ReceiveRound(ctx context.Context, t Transfer, n int, r io.Reader) error
	// FinishReceive makes what was received the volume t.ID: visible, writable, with its size limit. It takes milliseconds.
	FinishReceive(ctx context.Context, t Transfer) (Volume, error)
	// EndTransfer forgets the rounds of a volume: at the sender always, at the receiver when it is given up. Idempotent.
	EndTransfer(ctx context.Context, id string) error

	// MakeDisk makes the disk volume t.ID at once, for a hypervisor to mirror into: a child of its base where that is here,
	// else empty (sparse). One that exists is returned.
	MakeDisk(ctx context.Context, t Transfer) (Volume, error)
	// DiskChanges lists, in order, where the disk volume t.ID may differ from what MakeDisk makes of t at the other end. known is false when
	// that can't be told without reading it. What is written from the call on may be missing.
	DiskChanges(ctx context.Context, t Transfer) (changes []Span, known bool, err error)
}

// Span is the bytes of a file from Start up to End.
type Span struct{ Start, End int64 }

// Transfer is a volume on its way; both ends give the same one.
type Transfer struct {
	ID   string    `json:"id"` // of the volume
	Kind Kind      `json:"kind"`
	Size api.Bytes `json:"size_bytes"`
	// Base is the image's base that the volume is a child of, when both ends have it with the same origin; else "".
	Base string `json:"base,omitempty"`
	// Last says that no round comes after this one, so that neither end prepares for it: the volume's user stands still. Of the call for one
	// round only.
	Last bool `json:"last,omitempty"`
}
