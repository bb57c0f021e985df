// Package migrate is what a move between two hosts needs besides the operation itself: the session that joins the two ends,
// what the link between them can do, and the choice of how a VE is moved.
//
// It does not move anything: package host runs the operation, models and pools carry memory and volumes. It keeps no records.
//
// # Sessions
//
// The source Connects, the target Opens; each stream is a connection of its own, made by the source with an HTTP/1.1 Upgrade
// request that the target answers once both ends have asked for it. Both ends know a secret of this move, and a request has to
// prove so: being a host of the cluster is not enough. One more connection carries a heartbeat. A peer that is silent for
// Silence has vanished, whether its process, its host or the link: the session is broken then, and so are all its streams. A
// slow peer, one that does not read for minutes, is not taken for a vanished one.
//
// All types are safe for concurrent use. The choice is a pure function.
package migrate

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"time"

	"polder/api"
)

// Silence is how long the other end may say nothing until it is taken for vanished. Five lost segments in a row fit in, as
// happens on a link that loses one in five.
const Silence = 5 * time.Second

// Dial opens a connection to the other host, authenticated both ways.
type Dial func(ctx context.Context) (net.Conn, error)

// SessionOptions of the source's end.
type SessionOptions struct {
	Secret      []byte     // that the target's Open is given too; see NewSecret
	Peer, Local netip.Addr // of the target, and of this host as the target reaches it
	// Bandwidth that the streams of this end may send with, all together, in bytes per second; 0: no limit.
	Bandwidth api.Bytes
}

// NewSecret makes the key of one move.
func NewSecret() []byte {
	key := make([]byte, 32)
	rand.Read(key) //nolint:errcheck // it never fails
	return key
}
