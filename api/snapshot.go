package api

import "time"

// Snapshot is a VE at a moment: its disk, and its memory where that was asked for.
type Snapshot struct {
	Name      string    `json:"name"`
	VE        string    `json:"ve"`
	Parent    string    `json:"parent,omitempty" doc:"snapshot that the VE had come from when this one was taken"`
	Current   bool      `json:"current" doc:"the VE has come from this one"`
	Memory    bool      `json:"memory" doc:"it has the memory, too"`
	How       string    `json:"how,omitempty" doc:"what was done for the disk to be consistent"`
	StoodMS   int64     `json:"stood_ms" doc:"for how long the VE stood still, or could not write"`
	UsedBytes Bytes     `json:"used_bytes" doc:"that nothing else shares, as far as the pool can tell; memory included"`
	CreatedAt time.Time `json:"created_at"`
	// ExpiresAt is when it is deleted by itself.
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// SnapshotRequest takes a snapshot of a VE.
type SnapshotRequest struct {
	Name           string `json:"name,omitempty" doc:"default: s and the time, such as s20261130-081500"`
	Memory         bool   `json:"memory,omitempty" doc:"with its memory; it must run"`
	ExpiresSeconds int64  `json:"expires_seconds,omitempty" doc:"delete it by itself after that time"`
}

// SnapshotSchedule has snapshots of a VE taken while it runs, and deleted, by themselves.
type SnapshotSchedule struct {
	EverySeconds int64 `json:"every_seconds" doc:"from one to the next; at least 60"`
	KeepSeconds  int64 `json:"keep_seconds" doc:"how long each is kept; at most 1000 at a time"`
	Memory       bool  `json:"memory,omitempty" doc:"with its memory"`
}

// Check says what is wrong with a schedule; errors are Invalid.
func (s SnapshotSchedule) Check() error {
	const least, most, longest = 60, 1000, 10 * 365 * 24 * 3600
	switch {
	case s.EverySeconds < least || s.EverySeconds > longest:
		return Errorf(Invalid, "a snapshot every %d seconds: want at least %d", s.EverySeconds, least)
	case s.KeepSeconds < 1 || s.KeepSeconds > longest:
		return Errorf(Invalid, "snapshots kept for %d seconds: want a positive number", s.KeepSeconds)
	case s.KeepSeconds/s.EverySeconds >= most:
		return Errorf(Invalid, "%d snapshots at a time: want at most %d; take them less often, or keep them shorter", s.KeepSeconds/s.EverySeconds+1, most)
	}
	return nil
}
