package api

// MoveMode is how a VE gets from one host to another.
type MoveMode string

// The modes, from the gentlest.
const (
	Auto MoveMode = "auto" // the gentlest that keeps the wanted outage
	Live MoveMode = "live" // copied while it runs, stands still for the last set: outage below a second
	// PostCopy is Live, and goes on at the other host at once, its memory following: until that is there it is lost if either dies.
	// Only asked for: what comes of it is Live.
	PostCopy MoveMode = "post-copy"
	Warm     MoveMode = "warm" // stands still, is copied, goes on: outage as long as the copy
	Cold     MoveMode = "cold" // halted in order, copied, started: state lost
)

// ParseMoveMode reads a mode's name.
func ParseMoveMode(s string) (MoveMode, error) {
	switch m := MoveMode(s); m {
	case Auto, Live, PostCopy, Warm, Cold:
		return m, nil
	}
	return "", Errorf(Invalid, "mode %q: want auto, live, post-copy, warm or cold", s)
}

// MoveRequest moves a VE to another host.
type MoveRequest struct {
	To             string   `json:"to" doc:"name of the host to move to"`
	Mode           MoveMode `json:"mode,omitempty" enum:"auto,live,post-copy,warm,cold" doc:"default auto"`
	MaxDowntimeMS  int64    `json:"max_downtime_ms,omitempty" doc:"the longest outage wanted; a move that is not expected to keep it is refused"`
	BandwidthBytes Bytes    `json:"bandwidth_bytes_per_second,omitempty" doc:"the most that this move may send; 0: no limit"`
}

// MovePlan says what a move would do.
type MovePlan struct {
	VE       string    `json:"ve"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Mode     MoveMode  `json:"mode" enum:"live,warm,cold" doc:"that was chosen, or asked for"`
	Possible bool      `json:"possible"`
	Way      string    `json:"way,omitempty" doc:"how a live move carries memory: pre-copy, throttle, post-copy, one pass"`
	Reason   string    `json:"reason" doc:"why this mode, or why not at all"`
	Remedy   string    `json:"remedy,omitempty" doc:"what would help a move that is not possible"`
	OutageMS int64     `json:"predicted_outage_ms"`
	TotalMS  int64     `json:"predicted_total_ms"`
	Bytes    Bytes     `json:"predicted_bytes"`
	Blockers []Blocker `json:"blockers" doc:"what keeps the VE from being moved in a gentler way, or at all"`
}

// Blocker is one thing that stands in the way of a move.
type Blocker struct {
	Process    string   `json:"process,omitempty" doc:"name of the process inside the VE"`
	PID        int      `json:"pid,omitempty" doc:"of the process, as seen on the host"`
	Descriptor string   `json:"descriptor,omitempty" doc:"such as: fd 7, mount /mnt, device root"`
	Reason     string   `json:"reason"`
	Remedy     string   `json:"remedy,omitempty"`
	Except     MoveMode `json:"except,omitempty" doc:"the gentlest mode that it does not stand in the way of; empty: it forbids every move"`
}

// MoveResult is the result of the operation "move". Its outage was seen from outside of the VE.
type MoveResult struct {
	Mode             MoveMode `json:"mode" enum:"live,warm,cold"`
	From             string   `json:"from"`
	To               string   `json:"to"`
	OutageMS         int64    `json:"outage_ms" doc:"longest gap in the VE's answers to a probe each 5 ms from another host; -1: it was not answering before"`
	TotalMS          int64    `json:"total_ms"`
	TransferredBytes Bytes    `json:"transferred_bytes"`
	StateKept        bool     `json:"state_kept"`
	Reason           string   `json:"reason" doc:"why this mode"`
	// StillMS is how long the VE stood still by the hosts' own clocks.
	StillMS int64 `json:"still_ms"`
	// Observer is the host that probed.
	Observer string `json:"observer,omitempty"`
}
