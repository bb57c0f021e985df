package server

import (
	"io"
	"sync"

	"polder/api"
)

// input is a session's standard input: filled by the connection without ever blocking it, emptied by the command. It
// holds at most api.StreamWindow bytes; a client that sends more has not waited for the acknowledgement.
type input struct {
	acknowledge func(total int64)

	mu     sync.Mutex // guards the rest
	filled *sync.Cond
	data   []byte
	end    error // what Read returns once data is empty: io.EOF after an orderly end
	taken  int64 // in all
	acked  int64 // of taken
}

func newInput(acknowledge func(total int64)) *input {
	in := &input{acknowledge: acknowledge}
	in.filled = sync.NewCond(&in.mu)
	return in
}

// add appends what the client sent; nothing means the end.
func (in *input) add(data []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	defer in.filled.Broadcast()
	switch {
	case in.end != nil && len(data) > 0:
		return api.Errorf(api.Invalid, "session: input after its end")
	case len(data) == 0:
		if in.end == nil {
			in.end = io.EOF
		}
	case len(in.data)+len(data) > api.StreamWindow:
		return api.Errorf(api.Invalid, "session: more than %d bytes of input ahead of stdin_read", api.StreamWindow)
	default:
		in.data = append(in.data, data...)
	}
	return nil
}

// fail ends the input with an error, unless it has ended already.
func (in *input) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.end == nil {
		in.end = err
	}
	in.filled.Broadcast()
}

// Read blocks until there is input or it has ended.
func (in *input) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	in.mu.Lock()
	for len(in.data) == 0 && in.end == nil {
		in.filled.Wait()
	}
	if len(in.data) == 0 {
		defer in.mu.Unlock()
		return 0, in.end
	}
	n := copy(p, in.data)
	in.data = in.data[n:]
	if len(in.data) == 0 {
		in.data = nil // a burst's memory is not kept
	}
	in.taken += int64(n)
	total, due := in.taken, in.taken-in.acked >= api.StreamWindow/4
	if due {
		in.acked = total
	}
	in.mu.Unlock()
	if due {
		in.acknowledge(total)
	}
	return n, nil
}
