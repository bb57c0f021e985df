package api

import "time"

// Level says how well a capability is there.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Limited Level = "limited"
	Missing Level = "missing"
)

// Capability is one thing that a host, or a VE on it, can or cannot do.
type Capability struct {
	Name   string `json:"name" example:"kvm"`
	Level  Level  `json:"level" enum:"ok,limited,missing"`
	Detail string `json:"detail" doc:"what was found"`
	Remedy string `json:"remedy,omitempty" doc:"the command or step that mends it"`
}

// Host is a machine that runs VEs.
type Host struct {
	Name         string       `json:"name"`
	State        string       `json:"state" enum:"ready,unreachable"`
	Version      string       `json:"version"`
	Kernel       string       `json:"kernel"`
	CPUs         int          `json:"cpus"`
	MemoryBytes  Bytes        `json:"memory_bytes"`
	VEs          int          `json:"ves"`
	BootedAt     time.Time    `json:"booted_at"`
	Capabilities []Capability `json:"capabilities"`
}

// Network is an L2 segment that VEs are attached to.
type Network struct {
	Name   string `json:"name"`
	Bridge string `json:"bridge"`
	IPv4   string `json:"ipv4" doc:"the host's own address with prefix length" example:"10.87.0.1/24"`
	IPv6   string `json:"ipv6"`
	Domain string `json:"domain" example:"polder.internal"`
	NAT    bool   `json:"nat"`
	MTU    int    `json:"mtu"`
	VEs    int    `json:"ves"`
}

// Pool is storage for VEs' volumes.
type Pool struct {
	Name       string `json:"name"`
	Driver     string `json:"driver" enum:"dir,btrfs"`
	Path       string `json:"path"`
	TotalBytes Bytes  `json:"total_bytes"`
	FreeBytes  Bytes  `json:"free_bytes"`
	Volumes    int    `json:"volumes"`
}

// Volume is a piece of a pool that belongs to a VE.
type Volume struct {
	Name      string `json:"name"`
	Pool      string `json:"pool"`
	VE        string `json:"ve,omitempty"`
	SizeBytes Bytes  `json:"size_bytes" doc:"limit of a tree, virtual size of a disk; 0: no limit"`
	UsedBytes Bytes  `json:"used_bytes" doc:"that no other volume shares, as far as the driver can tell"`
}
