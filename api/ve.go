package api

import (
	"regexp"
	"time"
)

// Model is how a VE is run.
type Model string

// The models.
const (
	Container Model = "container" // OS virtualization: shared kernel
	VM        Model = "vm"        // own kernel on a hypervisor
	Partition Model = "partition" // own kernel on hardware that nothing else touches
)

// ParseModel reads a model's name.
func ParseModel(s string) (Model, error) {
	switch m := Model(s); m {
	case Container, VM, Partition:
		return m, nil
	}
	return "", Errorf(Invalid, "model %q: want container, vm or partition", s)
}

// State is where a VE is in its life; see package model for the transitions.
type State string

// The states.
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Paused   State = "paused"
	Stopping State = "stopping"
	Failed   State = "failed" // VE.Reason says why
)

// RestartPolicy says what happens when a VE ends by itself.
type RestartPolicy string

// The restart policies.
const (
	RestartNever     RestartPolicy = "never"
	RestartOnFailure RestartPolicy = "on-failure" // after a crash, not after an orderly halt from inside
	RestartAlways    RestartPolicy = "always"
)

// Address is one address of a VE on a network. A VE has one entry for its IPv4 and one for its IPv6 address.
type Address struct {
	Network string `json:"network"`
	MAC     string `json:"mac"`
	Address string `json:"address" doc:"IP address with prefix length" example:"10.87.0.5/24"`
}

// VE is a virtual environment.
type VE struct {
	Name        string            `json:"name"`
	ID          string            `json:"id" doc:"UUID; a new one for every VE, also for a clone"`
	Model       Model             `json:"model" enum:"container,vm,partition"`
	State       State             `json:"state" enum:"stopped,starting,running,paused,stopping,failed"`
	Reason      string            `json:"reason,omitempty" doc:"why it failed or was restarted last"`
	Host        string            `json:"host"`
	MovingTo    string            `json:"moving_to,omitempty" doc:"host that a move under way takes it to"`
	Image       string            `json:"image" doc:"as named at launch"`
	ImageDigest string            `json:"image_digest"`
	Addresses   []Address         `json:"addresses"`
	CPUs        int               `json:"cpus"`
	MemoryBytes Bytes             `json:"memory_bytes"`
	DiskBytes   Bytes             `json:"disk_bytes"`
	Labels      map[string]string `json:"labels"`
	CreatedAt   time.Time         `json:"created_at"`
	StartedAt   *time.Time        `json:"started_at,omitempty"`
	ExpiresAt   *time.Time        `json:"expires_at,omitempty" doc:"when it is deleted by itself"`
	Schedule    *SnapshotSchedule `json:"snapshot_schedule,omitempty" doc:"when snapshots of it are taken"`
	PID         int               `json:"pid" doc:"first process of the VE in its host's pid namespace; 0 when not running"`
	Restart     RestartPolicy     `json:"restart" enum:"never,on-failure,always"`
	Restarts    int               `json:"restarts" doc:"how often the restart policy started it since the last start by hand"`
	Ephemeral   bool              `json:"ephemeral"`
	Firmware    Firmware          `json:"firmware,omitempty" doc:"of a vm"`
	Accelerator string            `json:"accelerator,omitempty" doc:"of a vm: kvm or tcg"`
	Pool        string            `json:"pool"`
	// FromTemplate is set in the result of a launch only.
	FromTemplate bool         `json:"from_template,omitempty" doc:"of the result of a launch: it did not boot, but is a fork of its image's template"`
	Capability   []Capability `json:"capabilities,omitempty" doc:"what this VE's model can do here, and what not and why"`
}

// Firmware is what starts a VM.
type Firmware string

// The firmwares.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// LaunchRequest makes a VE and starts it.
type LaunchRequest struct {
	Name        string            `json:"name"`
	Image       string            `json:"image" doc:"alias or digest (or a unique prefix of 12 or more hex digits)"`
	Model       Model             `json:"model,omitempty" doc:"default container"`
	CPUs        int               `json:"cpus,omitempty" doc:"default 1"`
	MemoryBytes Bytes             `json:"memory_bytes,omitempty" doc:"default 512 MiB"`
	DiskBytes   Bytes             `json:"disk_bytes,omitempty" doc:"default 10 GiB, or the image's size when larger"`
	Host        string            `json:"host,omitempty"`
	Pool        string            `json:"pool,omitempty"`
	UserData    string            `json:"user_data,omitempty" doc:"cloud-init user-data, the text itself"`
	Labels      map[string]string `json:"labels,omitempty"`
	Ephemeral   bool              `json:"ephemeral,omitempty" doc:"deleted when it stops"`
	TTLSeconds  int64             `json:"ttl_seconds,omitempty" doc:"delete it by itself after that time, whether or not it runs"`
	Restart     RestartPolicy     `json:"restart,omitempty" doc:"default on-failure"`
	Firmware    Firmware          `json:"firmware,omitempty" doc:"of a vm: bios (default) or uefi"`
	NoStart     bool              `json:"no_start,omitempty" doc:"make it, leave it stopped"`
}

// StopRequest stops a VE.
type StopRequest struct {
	Force          bool `json:"force,omitempty" doc:"kill instead of an orderly halt"`
	TimeoutSeconds int  `json:"timeout_seconds,omitempty" doc:"how long an orderly halt may take before it is killed; default 30"`
}

var nameForm = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)

// CheckName says whether a VE's (or network's, pool's, host's) name is a DNS label that starts with a letter.
func CheckName(noun, name string) error {
	if len(name) <= 63 && nameForm.MatchString(name) {
		return nil
	}
	return Errorf(Invalid, "%s name %q: want 1 to 63 lower-case letters, digits or hyphens, starting with a letter and not ending in a hyphen", noun, name)
}
