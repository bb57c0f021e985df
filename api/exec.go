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

// StreamWindow is how many bytes of standard input a client may send ahead of what StdinRead has acknowledged. It keeps
// a command that does not read its input from holding up signals and window sizes behind it.
const StreamWindow = 1 << 20

// StreamMessage is a control message of a stream. Exactly one field is set.
type StreamMessage struct {
	Start  *ExecRequest `json:"start,omitempty"`  // client, first message; of a console only rows and cols count
	Resize *Resize      `json:"resize,omitempty"` // client
	Signal string       `json:"signal,omitempty"` // client: "INT", "TERM", …
	// StdinRead is how many bytes of standard input have been taken in all; server, from time to time.
	StdinRead int64    `json:"stdin_read,omitempty"`
	Exit      *int     `json:"exit,omitempty"`  // server, last message: exit code (128 + signal number when killed)
	Error     *Problem `json:"error,omitempty"` // server, last message
}

// Resize is a new window size in characters.
type Resize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}
