package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	// beat is how often a silent stream sends a comment, so that either side notices when the other is gone.
	beat = 15 * time.Second
	// writeTimeout ends a stream whose reader does not read.
	writeTimeout = 30 * time.Second
)

// eventStream writes server-sent events. Safe for concurrent use.
type eventStream struct {
	mu      sync.Mutex // guards writing
	w       http.ResponseWriter
	control *http.ResponseController
	stop    context.CancelFunc
	beats   sync.WaitGroup
}

// newEventStream sends the headers and starts the heartbeat; close ends it.
func newEventStream(ctx context.Context, w http.ResponseWriter) *eventStream {
	ctx, stop := context.WithCancel(ctx)
	s := &eventStream{w: w, control: http.NewResponseController(w), stop: stop}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	s.write([]byte(": polder\n\n")) //nolint:errcheck // the first event says so too
	s.beats.Go(func() {
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				s.write([]byte(":\n\n")) //nolint:errcheck // the request's context ends with the connection
			case <-ctx.Done():
				return
			}
		}
	})
	return s
}

func (s *eventStream) close() {
	s.stop()
	s.beats.Wait()
	s.control.SetWriteDeadline(time.Time{}) //nolint:errcheck // the connection is used again, by requests without one
}

// send writes one event; name "" is the default ("message"), id 0 none.
func (s *eventStream) send(name string, id int64, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var text []byte
	if id != 0 {
		text = fmt.Appendf(text, "id: %d\n", id)
	}
	if name != "" {
		text = fmt.Appendf(text, "event: %s\n", name)
	}
	return s.write(fmt.Appendf(text, "data: %s\n\n", data))
}

func (s *eventStream) write(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.control.SetWriteDeadline(time.Now().Add(writeTimeout)) //nolint:errcheck // not every writer has one
	if _, err := s.w.Write(text); err != nil {
		return err
	}
	return s.control.Flush()
}
