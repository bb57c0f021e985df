// Package model says what a way of running VEs must be able to do, and holds the one state machine that all models share.
//
// It does not run anything itself: model/container and model/vm do. It knows nothing of the store, of pools or of how a
// network is made: whoever calls (package host) hands over a Spec in which all that is settled.
//
// # States
//
//	stopped  --start-->  starting  --started-->  running  <--pause/resume-->  paused
//	running|paused  --stop-->  stopping  --exited-->  stopped
//	starting|running|paused  --crashed-->  failed  --start-->  starting
//
// See Next for the whole table.
package model

import (
	"context"
	"io"
	"net/netip"
	"time"

	"polder/api"
)

// Model runs VEs of one kind on this host. All methods are idempotent: repeating one that was cut off half-way finishes
// it. None starts a goroutine that outlives the call, except that Process.Exited is served by one. Safe for concurrent
// use with different VEs; calls for the same VE are made one after the other (package host sees to it).
type Model interface {
	// Prepare makes what the VE needs on this host besides its volume and its network, in Spec.Dir.
	Prepare(ctx context.Context, ve Spec) error
	// Start starts the VE and returns once its first process runs (not: once it has booted). It plugs the NICs by
	// Spec.Plug. Starting a VE that runs returns its Process.
	Start(ctx context.Context, ve Spec) (Process, error)
	// Stop halts the VE in order, kills it after grace (at once when grace is 0), and waits until it is gone. It
	// undoes all that Start did. Stopping a VE that does not run only tidies up.
	Stop(ctx context.Context, ve Spec, grace time.Duration) error
	Pause(ctx context.Context, ve Spec) error
	Resume(ctx context.Context, ve Spec) error
	// Adopt finds the VE's process after a restart of the daemon: ok is false when it does not run. It must be fast
	// (milliseconds) and must not touch the VE. paused says that it is paused.
	Adopt(ctx context.Context, ve Spec) (p Process, paused, ok bool, err error)
	// Remove undoes Prepare.
	Remove(ctx context.Context, ve Spec) error
	// Capabilities says what the model can do on this host, and what not and why.
	Capabilities(ctx context.Context) []api.Capability
}

// Execer is a model that can run a command inside a running VE.
type Execer interface {
	// Exec blocks until the command has ended and returns its exit code (128 + n when signal n killed it). Cancelling
	// ctx kills the command.
	Exec(ctx context.Context, ve Spec, req api.ExecRequest, streams Streams) (exitCode int, err error)
}

// Consoler is a model with a console to log in at.
type Consoler interface {
	// Console blocks until the caller's stdin ends, ctx is done or the console goes away. Several may be attached.
	Console(ctx context.Context, ve Spec, streams Streams) error
}

// Ender is a model that can say how a VE ended when nobody watched.
type Ender interface {
	// Ended says how the VE's last run ended, from what it left behind, until the VE is started or stopped again. ok is
	// false when it runs, or nothing is known.
	Ended(ve Spec) (exit Exit, ok bool)
}

// Streams connects a command or a console to its user. Resize and Signals may be nil. Signals carries names ("INT").
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan api.Resize
	Signals        <-chan string
}

// Process is a running VE.
type Process struct {
	// PID of the VE's first process (container: its init; vm: QEMU) in the host's pid namespace.
	PID int
	// Accelerator of a vm: "kvm" or "tcg".
	Accelerator string
	// Exited receives one Exit when the process has ended, and is closed then. It is served whether or not the process is a child
	// of the daemon.
	Exited <-chan Exit
}

// Exit says how a VE ended.
type Exit struct {
	// Crashed is true unless the VE halted in order (powered off from inside, or by Stop).
	Crashed bool
	// Reboot is true when the VE asked to be started again (a reboot inside a container; a vm reboots by itself).
	Reboot bool
	// HostDown is true when the host went down under the VE: it is not the VE's doing. Set by the host, not by models.
	HostDown bool
	// Reason for people: "powered off", "killed by signal 9", "qemu: exit status 1: <end of its log>".
	Reason string
}

// Spec is all that a model needs to know to run a VE on this host. The caller keeps it equal from call to call as long
// as the VE runs.
type Spec struct {
	ID   string // UUID
	Name string
	// Dir is the VE's own directory for configuration, sockets and logs: absolute, exists, root-owned 0711. Its path
	// is short enough for a unix socket in it.
	Dir string
	// Root is the VE's volume, ready to use.
	Root Root
	CPUs int
	// Memory limit of a container, RAM of a vm.
	Memory api.Bytes
	NICs   []NIC
	Plug   Plug
	// IDBase is the first of IDCount (65536) user and group ids on the host that are the VE's own: the container's
	// user namespace maps 0… to them; QEMU runs as IDBase.
	IDBase, IDCount uint32
	// App is how to run an application image; nil: a system image, booted by its /sbin/init.
	App       *api.ImageConfig
	CloudInit CloudInit
	Firmware  api.Firmware
	// Cgroup is the VE's own cgroup as a path below the cgroup2 mount, such as "/polder/c1".
	Cgroup string
}

// LogPath is the file that a model writes the VE's console output to.
func (s Spec) LogPath() string { return s.Dir + "/console.log" }

// Root is a VE's volume as the model sees it: exactly one of Tree and Disk is set.
type Root struct {
	// Tree is a directory with a root file system whose files belong to ids 0…65535 (not shifted).
	Tree string
	// Layers, when set, are to be mounted as an overlay at Tree by whoever runs the VE: Lower read-only, Upper and Work on one file system.
	Layers *Layers
	// Disk is a disk image file.
	Disk   string
	Format string // of Disk: "raw" or "qcow2"
}

// Layers of an overlay.
type Layers struct{ Lower, Upper, Work string }

// NIC is one network interface of a VE.
type NIC struct {
	Network  string
	Name     string // inside a container: "eth0"
	HostName string // of the host's end (veth or tap), unique on the host, at most 15 bytes
	MAC      string
	MTU      int
	// Addresses with the network's prefix length, and the gateways, for models that configure the inside from outside.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	// Shut: it comes up with its gate shut (see Plug.Gate).
	Shut   bool
	DNS    []netip.Addr
	Domain string // search domain
}

// Plug connects NICs to their networks; package network implements it. Idempotent.
type Plug interface {
	// Veth makes a veth pair: one end on the network's bridge, the other as nic.Name in the network namespace of pid,
	// configured and up.
	Veth(ctx context.Context, nic NIC, pid int) error
	// Tap makes a persistent tap device nic.HostName on the network's bridge that uid may open, and sets it up.
	Tap(ctx context.Context, nic NIC, uid uint32) error
	// Attach puts nic.HostName, a host's end that somebody else made, on the network's bridge with its gate shut, and sets it up.
	Attach(ctx context.Context, nic NIC) error
	// Gate opens or shuts a NIC on the host's side: shut, no packet passes either way, and the VE sees no loss of carrier. Opening
	// takes effect at once. A NIC that is not there is api.NotFound.
	Gate(ctx context.Context, nic NIC, open bool) error
	// Unplug removes the host's end; a NIC that is not there is no error.
	Unplug(ctx context.Context, nic NIC) error
}

// CloudInit is the NoCloud data of a VE. UserData empty: none was given.
type CloudInit struct {
	UserData, MetaData, NetworkConfig string
}
