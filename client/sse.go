package client

import (
	"bufio"
	"bytes"
	"io"

	"polder/api"
)

// maxEvent bounds one server-sent event.
const maxEvent = 4 << 20

// sseEvent is one server-sent event.
type sseEvent struct {
	name string // "" is the default
	data []byte // valid until each returns
}

// readEvents parses a text/event-stream (WHATWG HTML, section 9.2) as far as Polder uses it, until it ends or each
// returns an error.
func readEvents(r io.Reader, each func(sseEvent) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxEvent)
	var e sseEvent
	for lines.Scan() {
		line := lines.Bytes()
		if len(line) == 0 {
			if e.data != nil {
				if err := each(e); err != nil {
					return err
				}
			}
			e = sseEvent{}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			e.name = string(value)
		case "data":
			if e.data != nil {
				e.data = append(e.data, '\n')
			}
			e.data = append(e.data, value...)
			if e.data == nil {
				e.data = []byte{}
			}
			if len(e.data) > maxEvent {
				return api.Errorf(api.Internal, "read events: one is longer than %d bytes", maxEvent)
			}
		}
	}
	return lines.Err()
}
