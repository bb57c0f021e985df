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

// HostState says whether a host answers.
type HostState string

// The states of a host.
const (
	HostReady       HostState = "ready"
	HostUnreachable HostState = "unreachable" // its lease has run out: it is down, or cut off
)

// HostRole is a host's part in the store.
type HostRole string

// The roles.
const (
	RoleMember  HostRole = "member"  // keeps a copy of the store, votes, runs VEs
	RoleClient  HostRole = "client"  // uses the members' store, runs VEs
	RoleWitness HostRole = "witness" // keeps a copy and votes, runs no VEs
)

// JoinToken lets one more host into the cluster.
type JoinToken struct {
	Token     string    `json:"token" doc:"for: polder serve --join TOKEN; good for one host"`
	ExpiresAt time.Time `json:"expires_at"`
	Advice    string    `json:"advice,omitempty" doc:"what the cluster will and won't survive with one host more"`
}

// JoinTokenRequest asks for a token.
type JoinTokenRequest struct {
	ExpiresSeconds int64  `json:"expires_seconds,omitempty" minimum:"0" maximum:"2592000" doc:"how long the token is good; default 3600"`
	Address        string `json:"address,omitempty" doc:"IP[:PORT] where other hosts are to reach a host that was alone until now; default: its address on the default route, port 7440"`
}

// HostRemoval says what went with a host.
type HostRemoval struct {
	Name string   `json:"name"`
	Lost []string `json:"lost_ves" doc:"VEs that were on it: their records are deleted"`
}

// Host is a machine that runs VEs.
type Host struct {
	Name         string       `json:"name"`
	State        HostState    `json:"state" enum:"ready,unreachable"`
	Address      string       `json:"address,omitempty" doc:"where other hosts reach it: IP:PORT; empty: it is alone"`
	Site         string       `json:"site,omitempty" doc:"the data centre it is in: a failure domain"`
	Role         HostRole     `json:"role" enum:"member,client,witness" doc:"its part in the store"`
	Version      string       `json:"version"`
	Kernel       string       `json:"kernel"`
	CPUs         int          `json:"cpus"`
	MemoryBytes  Bytes        `json:"memory_bytes"`
	VEs          int          `json:"ves"`
	BootedAt     time.Time    `json:"booted_at"`
	JoinedAt     time.Time    `json:"joined_at"`
	Capabilities []Capability `json:"capabilities"`
	// UnreachableSince is when an unreachable host was last known to be alive, where that is known.
	UnreachableSince *time.Time `json:"unreachable_since,omitempty"`
	FreeMemoryBytes  Bytes      `json:"free_memory_bytes"`
	PoolFreeBytes    Bytes      `json:"pool_free_bytes"`
	Advice           string     `json:"advice,omitempty" doc:"what the cluster will not survive, and what would help; the same for all hosts"`
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
	// Encrypted: what VEs send between hosts is encrypted.
	Encrypted bool `json:"encrypted" doc:"what VEs send each other between hosts is encrypted"`
}

// NetworkChange changes what is set; nothing else.
type NetworkChange struct {
	Encrypted *bool `json:"encrypted,omitempty" doc:"encrypt what VEs send each other between hosts; every host's kernel must have WireGuard"`
}

// Pool is storage for VEs' volumes.
type Pool struct {
	Name       string `json:"name"`
	Host       string `json:"host"`
	Driver     string `json:"driver" enum:"dir,btrfs"`
	Path       string `json:"path"`
	TotalBytes Bytes  `json:"total_bytes"`
	FreeBytes  Bytes  `json:"free_bytes"`
	Volumes    int    `json:"volumes"`
}

// Volume is a piece of a pool that belongs to a VE.
type Volume struct {
	Name      string `json:"name"`
	Host      string `json:"host"`
	Pool      string `json:"pool"`
	VE        string `json:"ve,omitempty"`
	SizeBytes Bytes  `json:"size_bytes" doc:"limit of a tree, virtual size of a disk; 0: no limit"`
	UsedBytes Bytes  `json:"used_bytes" doc:"that no other volume shares, as far as the driver can tell"`
}
