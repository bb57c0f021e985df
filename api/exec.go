package api

// ExecRequest runs a command in a VE.
type ExecRequest struct {
	Command []string `json:"command"`
	Env     []string `json:"env,omitempty" doc:"KEY=VALUE"`
	Dir     string   `json:"dir,omitempty"`
	User    string   `json:"user,omitempty" doc:"user[:group], by name or number; default root"`
	TTY     bool     `json:"tty,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Cols    uint16   `json:"cols,omitempty"`
}

// A stream (exec, console) is a WebSocket of binary messages. The first byte of each says what the rest is. With a tty
// standard error comes as Stdout. An empty Stdin message is the end of input.
const (
	StreamStdin   byte = 0
	StreamStdout  byte = 1
	StreamStderr  byte = 2
	StreamControl byte = 3 // a StreamMessage as JSON
)

// StreamMessage is a control message of a stream. Exactly one field is set.
type StreamMessage struct {
	Start  *ExecRequest `json:"start,omitempty"`  // client, first message
	Resize *Resize      `json:"resize,omitempty"` // client
	Signal string       `json:"signal,omitempty"` // client: "INT", "TERM", …
	Exit   *int         `json:"exit,omitempty"`   // server, last message: exit code (128 + signal number when killed)
	Error  *Problem     `json:"error,omitempty"`  // server, last message
}

// Resize is a new window size in characters.
type Resize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}
