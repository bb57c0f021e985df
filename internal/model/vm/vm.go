// Package vm runs VEs as virtual machines: one QEMU process each, driven by QMP.
//
// It owns the QEMU command line (a pure function of the Spec, of what was settled for the VE at its first start, and of what
// the host can do), the process, its sockets, the console, the seed for cloud-init and what is done inside through the
// guest agent. It does not make disks, networks or images.
//
// # The process
//
// QEMU is started as the VE's own user, in the VE's own cgroup and in a session of its own, so that the daemon may come and
// go; it is never root: what needs privilege (sockets, tap devices, /dev/kvm) is opened here and handed over as a descriptor.
// Its sockets are listening before it runs, so a connect is answered as soon as QEMU can, without polling.
//
// Alive is who holds the lock on the pidfile: QEMU takes it for as long as it lives, the kernel names the holder and drops
// it at the end, whatever end that is. There is no way to mistake another process for the VE's.
//
// How it ended is told by, in this order: a Stop of ours (the mark "halting"); the exit status, when the kernel knows it; and
// the pidfile, which QEMU removes when it exits by itself and leaves behind when it is killed.
//
// # Moves
//
// The source's QEMU is a client of the target's, on connections of their own with TLS by a key of that move: NBD for the disk,
// migration for the memory. The two models talk on a stream of the session (wire.go). QEMU goes on by itself when the daemon
// dies, up to where the source stands still before it hands over (pause-before-switchover), and no further: from then on it
// takes a daemon to go on, or Keep to go back. At the target nothing runs before Enter (-S).
//
//	send.go, receive.go   the two ends, step by step         movedisk.go, delta.go   the disk
//	keep.go               which end goes on                  monitor.go              QEMU's part, and how it is tidied up
//	needs.go, load.go     what is asked before               pace.go                 for how long it may stand still
//
// A VE that was paused is moved as it is, and is paused at the target; move.json carries that, as QEMU can't tell a VE that
// somebody paused from one that stands still for the move.
//
// # Files in Spec.Dir
//
//	machine.json  machine type, CPU and generation, settled at the first start, kept for the VE's life
//	running.json  written before each start: boot id and accelerator, to judge a pidfile by
//	run/pid       QEMU's pidfile; the directory is the VE's user's, so that QEMU can remove it
//	qmp.sock, console.sock, agent.sock   root only
//	move.sock     a second monitor, of moves only: QEMU serves one client of each, and a move is long (see Send)
//	move.json     a move is under way, or was cut off: which end this is, and what the VE is to be afterwards
//	key/          the key of that move's connections, while there is one
//	console.log, qemu.log                the serial console; QEMU's standard error
//	vars.fd, seed.iso                    UEFI variables; NoCloud data
//	halting       a Stop is under way
//
// # Concurrency
//
// A Model keeps, for each VE, at most one connection to the console (shared by all that are attached) and one to the guest
// agent (one call at a time), opened on demand and opened again after a restart of the daemon.
package vm

import (
	"sync"

	"polder/internal/model"
)

// Config says what the host offers.
type Config struct {
	// KVM says that it can run 64-bit systems; else they are emulated (TCG).
	KVM bool
	// QEMU is the emulator's path or name; empty: qemu-system-x86_64.
	QEMU string
	// Firmware is the directory with OVMF_CODE_4M.fd and OVMF_VARS_4M.fd; empty: /usr/share/OVMF.
	Firmware string
}

// Model runs virtual machines. Safe for concurrent use with different VEs.
type Model struct {
	cfg     Config
	version qemuVersion

	faults sync.Mutex // keeps changes of who may open faultDevice whole

	mu  sync.Mutex // guards ves
	ves map[string]*attached
}

var (
	_ model.Model    = (*Model)(nil)
	_ model.Execer   = (*Model)(nil)
	_ model.Consoler = (*Model)(nil)
	_ model.Ender    = (*Model)(nil)
)

// New makes the model; it looks at nothing yet.
func New(cfg Config) *Model {
	if cfg.QEMU == "" {
		cfg.QEMU = "qemu-system-x86_64"
	}
	if cfg.Firmware == "" {
		cfg.Firmware = "/usr/share/OVMF"
	}
	return &Model{cfg: cfg, ves: map[string]*attached{}}
}

// attached is what this daemon holds of one VE, all of it replaceable.
type attached struct {
	halting sync.Map // pids of QEMU processes that Stop ends
	agent   *agentLine
	console fanout
}

// attached gives what is held of a VE.
func (m *Model) attached(ve model.Spec) *attached {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.ves[ve.ID]
	if a == nil {
		a = &attached{agent: newAgentLine(agentSocket(ve)), console: fanout{path: consoleSocket(ve)}}
		m.ves[ve.ID] = a
	}
	return a
}

// release closes what is held of a VE.
func (m *Model) release(ve model.Spec) {
	m.mu.Lock()
	a := m.ves[ve.ID]
	delete(m.ves, ve.ID)
	m.mu.Unlock()
	if a != nil {
		a.agent.close()
		a.console.close()
	}
}

func qmpSocket(ve model.Spec) string     { return ve.Dir + "/qmp.sock" }
func consoleSocket(ve model.Spec) string { return ve.Dir + "/console.sock" }
func agentSocket(ve model.Spec) string   { return ve.Dir + "/agent.sock" }
func moveSocket(ve model.Spec) string    { return ve.Dir + "/move.sock" }
func runDir(ve model.Spec) string        { return ve.Dir + "/run" }
func pidFile(ve model.Spec) string       { return ve.Dir + "/run/pid" }
func qemuLog(ve model.Spec) string       { return ve.Dir + "/qemu.log" }
func seedFile(ve model.Spec) string      { return ve.Dir + "/seed.iso" }
func varsFile(ve model.Spec) string      { return ve.Dir + "/vars.fd" }
func haltingFile(ve model.Spec) string   { return ve.Dir + "/halting" }
