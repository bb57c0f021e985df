package migrate

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"polder/api"
)

// LinkPath is where LinkHandler is served.
const LinkPath = "/peer/v1/link"

const (
	linkTime  = 200 * time.Millisecond // how long Measure sends
	linkPings = 5
	linkLimit = 10 * time.Second // that a measurement may take, at both ends
	// The first byte of a message says what it is.
	ping   = 0 // one byte, answered at once
	more   = 1 // chunk bytes
	enough = 2 // chunk bytes, answered with one byte
)

// Link is what a connection to another host can do.
type Link struct {
	Bandwidth api.Bytes // per second, of one connection
	RTT       time.Duration
}

// Measure finds out what the link to another host can do: it takes some 300 ms, and loads the link for 200 of them.
func Measure(ctx context.Context, dial Dial) (Link, error) {
	conn, err := upgrade(ctx, dial, LinkPath, http.Header{})
	if err != nil {
		return Link{}, api.Errorf(kindOr(err, api.Unavailable), "measure the link: %w", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(linkLimit))                                  //nolint:errcheck // the conn is broken if it fails
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })() //nolint:errcheck // as above
	link, err := measure(conn)
	if err != nil {
		return Link{}, api.Errorf(api.Unavailable, "measure the link: %w", err)
	}
	return link, nil
}

func measure(conn net.Conn) (Link, error) {
	link := Link{RTT: linkLimit}
	pong := make([]byte, 1)
	for range linkPings {
		start := time.Now()
		if _, err := conn.Write([]byte{ping}); err != nil {
			return link, err
		}
		if _, err := io.ReadFull(conn, pong); err != nil {
			return link, err
		}
		link.RTT = min(link.RTT, time.Since(start))
	}
	data := make([]byte, chunk)
	data[0] = more
	sent := 0
	start := time.Now()
	for data[0] == more {
		if time.Since(start) > linkTime {
			data[0] = enough
		}
		if _, err := conn.Write(data); err != nil {
			return link, err
		}
		sent += chunk
	}
	if _, err := io.ReadFull(conn, pong); err != nil {
		return link, err
	}
	// The answer to the last message took one more way back.
	took := max(time.Since(start)-link.RTT/2, time.Millisecond)
	link.Bandwidth = api.Bytes(float64(sent) / took.Seconds())
	return link, nil
}

// LinkHandler is the other end of Measure, for other hosts only.
func LinkHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := upgradable(r); err != nil {
			refuse(w, err)
			return
		}
		conn, err := accept(w)
		if err != nil {
			return // there is nobody to tell
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(linkLimit)) //nolint:errcheck // the conn is broken if it fails
		answerLink(conn)
	})
}

// answerLink answers pings, and the last of the messages that follow.
func answerLink(conn net.Conn) {
	data := make([]byte, chunk)
	for {
		if _, err := io.ReadFull(conn, data[:1]); err != nil {
			return
		}
		kind := data[0]
		if kind != ping {
			if _, err := io.ReadFull(conn, data[1:]); err != nil {
				return
			}
		}
		if kind != more {
			if _, err := conn.Write(data[:1]); err != nil || kind == enough {
				return
			}
		}
	}
}

func kindOr(err error, other api.Kind) api.Kind {
	if kind := api.KindOf(err); kind != api.Internal {
		return kind
	}
	return other
}
