// Package qmp speaks QEMU's two JSON protocols: QMP, the machine protocol of the hypervisor (Client), and that of the QEMU
// guest agent inside a VE (Agent).
//
// It knows the protocols only: greeting and capabilities, ids, events, out-of-band commands, passing of descriptors,
// synchronization with an agent. What to ask for, and how long to wait, is the caller's policy: every call takes a
// context. Both sides' messages are foreign bytes, the agent's even a guest's: they are bounded, and a peer that breaks the
// protocol breaks its connection only.
//
// Specifications: docs/interop/qmp-spec and docs/interop/qemu-ga-ref in QEMU's documentation.
package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
)

// maxMessage bounds one message, in bytes. The largest that we ask for is a file's chunk from the agent.
const maxMessage = 16 << 20

// Error is a command that QEMU or the agent refused.
type Error struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", …
	Desc    string
}

func (e *Error) Error() string { return e.Command + ": " + e.Desc }

// IsClass says whether err is a refusal of the class.
func IsClass(err error, class string) bool {
	var e *Error
	return errors.As(err, &e) && e.Class == class
}

type request struct {
	Execute   string  `json:"execute,omitempty"`
	OOB       string  `json:"exec-oob,omitempty"`
	Arguments any     `json:"arguments,omitempty"`
	ID        *uint64 `json:"id,omitempty"`
}

// message is anything a peer may send: a greeting, a response or an event.
type message struct {
	QMP *struct {
		Capabilities []string `json:"capabilities"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID        *uint64         `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// answer decodes a response into result, which may be nil.
func (m *message) answer(command string, result any) error {
	if m.Error != nil {
		return &Error{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("%s: answer: %w", command, err)
	}
	return nil
}

// readLine reads a message's line; both protocols end each message with a newline.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxMessage {
			return nil, fmt.Errorf("a message is longer than %d bytes", maxMessage)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

func readMessage(r *bufio.Reader) (*message, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	m := &message{}
	if err := json.Unmarshal(line, m); err != nil {
		return nil, fmt.Errorf("a message is malformed: %w", err)
	}
	return m, nil
}
