package cluster

import (
	"time"

	"polder/api"
)

// Host is what changes seldom about a host: the record "host", under its name.
type Host struct {
	Name string `json:"name"`
	// ID is made once, with the host's first start; a name that was given to another machine shows by it.
	ID string `json:"id"`
	// Address is IP:PORT of the peer port; "" of a host that listens nowhere.
	Address      string           `json:"address,omitempty"`
	Site         string           `json:"site,omitempty"`
	Version      string           `json:"version"`
	Kernel       string           `json:"kernel"`
	Role         api.HostRole     `json:"role"`
	CPUs         int              `json:"cpus"`
	Memory       api.Bytes        `json:"memory_bytes"`
	BootedAt     time.Time        `json:"booted_at"`
	JoinedAt     time.Time        `json:"joined_at"`
	Capabilities []api.Capability `json:"capabilities,omitempty"`
	PoolDriver   string           `json:"pool_driver,omitempty"`
	// TransferFormat is that of the pool's storage.Sender: hosts with different ones can't exchange volumes.
	TransferFormat string `json:"transfer_format,omitempty"`
	MTU            int    `json:"mtu,omitempty"` // of the link that its address is on
	// LinkKey is the public half of Cluster.LinkKey: empty for a host that is alone, or of a release that has none.
	LinkKey string `json:"link_key,omitempty"`
}

// Status is a host as it is now.
type Status struct {
	Host
	Alive bool
	// Since is when it was last known to be alive, for a host that is not; zero: not known.
	Since time.Time
	Figures
}

// Figures are what changes all the time. They are some seconds old, and as much as a twentieth off.
type Figures struct {
	PoolTotal  api.Bytes `json:"pool_total_bytes"`
	PoolFree   api.Bytes `json:"pool_free_bytes"`
	MemoryFree api.Bytes `json:"memory_free_bytes"`
}

// heartbeat is the record "heartbeat" of a host, under its name and its lease.
type heartbeat struct {
	ID string `json:"id"`
	Figures
}

// absence is the record "absence" of a host that is not alive: the leader writes and clears it.
type absence struct {
	Since time.Time `json:"since"`
}

// leadership is the record "leader": who runs the controllers, under that host's lease.
type leadership struct {
	Host string `json:"host"`
}
