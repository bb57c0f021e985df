package api

import "fmt"

// CloneRequest makes VEs that begin as another one is.
type CloneRequest struct {
	Name  string `json:"name" doc:"name of the new VE"`
	Count int    `json:"count,omitempty" doc:"how many; more than one are named NAME-1, NAME-2, …; default 1"`
	Live  bool   `json:"live,omitempty" doc:"fork it while it runs, memory and all; else it must be stopped"`
	// Snapshot makes them begin as the VE was then, whatever it does now.
	Snapshot string `json:"snapshot,omitempty" doc:"name of a snapshot; with live it is one with memory"`
	Start    bool   `json:"start,omitempty" doc:"start the new ones; a fork runs anyway"`
	// The rest is about the new ones only.
	Ephemeral  bool              `json:"ephemeral,omitempty" doc:"deleted when they stop"`
	TTLSeconds int64             `json:"ttl_seconds,omitempty" doc:"delete them by themselves after that time"`
	Labels     map[string]string `json:"labels,omitempty" doc:"beside those that it has"`
}

// MostClones is the most that one request makes.
const MostClones = 256

// Names of the VEs that a request makes. Errors are Invalid.
func (r CloneRequest) Names() ([]string, error) {
	if r.Count < 0 || r.Count > MostClones {
		return nil, Errorf(Invalid, "%d clones: want 1 to %d", r.Count, MostClones)
	}
	names := []string{r.Name}
	if r.Count > 1 {
		names = nil
		for i := range r.Count {
			names = append(names, fmt.Sprintf("%s-%d", r.Name, i+1))
		}
	}
	for _, name := range names {
		if err := CheckName("ve", name); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// CloneResult is the result of the operation "clone".
type CloneResult struct {
	VEs []VE `json:"ves"`
	// Of a fork of a running VE; else 0.
	StoodMS    int64 `json:"stood_ms" doc:"for how long the VE that was forked stood still"`
	RestoredMS int64 `json:"restored_ms" doc:"from when it was told to stand still until all forks were there, with its memory, about to go on"`
	ReadyMS    int64 `json:"ready_ms" doc:"until all of them ran, with identities of their own, and were let on the network"`
}
