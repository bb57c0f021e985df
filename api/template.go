package api

import "time"

// WarmRequest keeps an image's VM booted and paused on a host, so that launches of VMs like it are forks.
type WarmRequest struct {
	Host        string `json:"host,omitempty" doc:"default: the host that is asked"`
	CPUs        int    `json:"cpus,omitempty" doc:"default 1"`
	MemoryBytes Bytes  `json:"memory_bytes,omitempty" doc:"default 512 MiB"`
	DiskBytes   Bytes  `json:"disk_bytes,omitempty" doc:"default 10 GiB, or the image's size when larger"`
	Off         bool   `json:"off,omitempty" doc:"remove such a template instead"`
}

// Template is an image's VM as it was when it had booted. A launch of a VM with the same image, CPUs, memory and disk, under BIOS and
// without user-data, is a fork of it.
type Template struct {
	Image       string    `json:"image" doc:"digest"`
	Host        string    `json:"host"`
	CPUs        int       `json:"cpus"`
	MemoryBytes Bytes     `json:"memory_bytes"`
	DiskBytes   Bytes     `json:"disk_bytes"`
	UsedBytes   Bytes     `json:"used_bytes" doc:"0 when another host was asked"`
	CreatedAt   time.Time `json:"created_at"`
}
