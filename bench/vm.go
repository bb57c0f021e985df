package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"polder/internal/qmp"
)

// bootLimit is how long a boot may take, emulated and on a busy machine.
const bootLimit = 5 * time.Minute

// vmResult is what one launch of a VM took, in seconds from the command on.
type vmResult struct {
	answer  float64 // the guest agent answers
	command float64 // the command line has returned
	process float64 // QEMU's process is there
	steps   map[string]float64

	firmware, kernel, userspace float64 // of the boot: firmware and boot loader; kernel and initrd; from there to the agent
	exec                        float64 // one `exec … echo ok` on the VM that is up
}

// measureVM compares a launch with the same QEMU command line started by hand, on a copy of the same disk. What Polder does
// itself is over before the system inside begins to boot, so it is also told by itself: the boots scatter by more than it.
func measureVM(ctx context.Context, b *bench) error {
	hand, err := b.newByHand(ctx)
	if err != nil {
		return err
	}
	var answer, theirs, command, process, exec, firmware, kernel, userspace, prepare sample
	for i := range b.vms {
		ours, err := b.bootPolder(ctx, "vm"+strconv.Itoa(i+1))
		if err != nil {
			return err
		}
		alone, err := hand.run(ctx)
		if err != nil {
			return err
		}
		b.say("vm %d: agent after %.1f s, by hand %.1f s", i+1, ours.answer, alone)
		answer.add(ours.answer)
		theirs.add(alone)
		command.add(1000 * ours.command)
		process.add(1000 * ours.process)
		prepare.add(ours.steps["reserve"] + ours.steps["volume"])
		exec.add(1000 * ours.exec)
		firmware.add(ours.firmware)
		kernel.add(ours.kernel)
		userspace.add(ours.userspace)
	}
	if err := hand.remove(ctx); err != nil {
		return err
	}
	over := answer.median() - theirs.median()
	s := b.report.section("A virtual machine: launch, until its guest agent answers")
	s.add(row{what: "launch until the agent answers", unit: "s", ours: answer, peer: "the same QEMU by hand", theirs: theirs})
	s.add(row{what: "– until QEMU's process starts: what Polder adds", unit: "ms", ours: process, aim: below("300 ms", process, 300)})
	s.add(row{what: "– of it steps reserve and volume", unit: "ms", ours: prepare})
	s.add(row{what: "– until the command returns, QEMU answering", unit: "ms", ours: command})
	s.add(row{what: "– boot: firmware and boot loader", unit: "s", ours: firmware})
	s.add(row{what: "– boot: kernel and initrd (systemd-analyze)", unit: "s", ours: kernel})
	s.add(row{what: "– boot: userspace, until the agent answers", unit: "s", ours: userspace})
	s.add(row{what: "exec echo ok, when it is up", unit: "ms", ours: exec})
	s.note("Difference of the medians: %+.2f s. The aim is 0.3 s over the one by hand; as boots scatter by more, it is checked by the time until QEMU's process starts, to 10 ms.", over)
	s.note("By hand: QEMU's own arguments, user and devices, on a reflink copy of the disk that was made before the clock started.")
	return nil
}

// bootPolder launches a VM and takes the times of its boot.
func (b *bench) bootPolder(ctx context.Context, name string) (r vmResult, err error) {
	began := time.Now()
	if _, err := b.cli(ctx, "launch", systemImage, name, "--model", "vm"); err != nil {
		return r, err
	}
	r.command = time.Since(began).Seconds()
	ve, err := b.client.VE(ctx, name)
	if err != nil {
		return r, err
	}
	agent, err := awaitAgent(ctx, filepath.Join(b.lab(), "h1/data/ve", ve.ID, "agent.sock"))
	if err != nil {
		return r, err
	}
	r.answer = time.Since(began).Seconds()
	kernelAt, err := kernelBegan(ctx, agent)
	agent.Close()
	if err != nil {
		return r, err
	}
	pid, err := b.qemu(ctx, name)
	if err != nil {
		return r, err
	}
	processAt, err := processBegan(pid)
	if err != nil {
		return r, err
	}
	r.process = processAt.Sub(began).Seconds()
	r.firmware = kernelAt.Sub(processAt).Seconds()
	if err := b.analyze(ctx, name, &r); err != nil {
		return r, err
	}
	r.userspace = r.answer - r.process - r.firmware - r.kernel
	ops, err := b.client.Operations(ctx)
	if err != nil {
		return r, err
	}
	for _, op := range ops {
		if op.Kind == "launch" && op.Target == "ve/"+name {
			r.steps = steps(op)
		}
	}
	return r, b.delete(ctx, name)
}

// analyze asks the system inside how long its kernel took, when it is up, and times an exec.
func (b *bench) analyze(ctx context.Context, name string, r *vmResult) error {
	// Its exit status is that of a system which is not quite well, too: systemd-analyze tells when it is not up.
	_, _ = b.cli(ctx, "exec", name, "--", "systemctl", "is-system-running", "--wait")
	out, err := b.cli(ctx, "exec", name, "--", "systemd-analyze", "time")
	if err != nil {
		return err
	}
	if r.kernel, err = kernelTime(out); err != nil {
		return err
	}
	began := time.Now()
	out, err = b.cli(ctx, "exec", name, "--", "echo", "ok")
	r.exec = time.Since(began).Seconds()
	return says("ok", out, err)
}

var (
	startupPart = regexp.MustCompile(`((?:[0-9.]+(?:min|ms|s) ?)+)\(([a-z]+)\)`)
	spanPart    = regexp.MustCompile(`([0-9.]+)(min|ms|s)`)
)

// kernelTime is what systemd-analyze says of kernel and initrd, in seconds.
func kernelTime(text string) (seconds float64, err error) {
	found := false
	for _, part := range startupPart.FindAllStringSubmatch(text, -1) {
		if part[2] != "kernel" && part[2] != "initrd" {
			continue
		}
		found = true
		for _, span := range spanPart.FindAllStringSubmatch(part[1], -1) {
			v, err := strconv.ParseFloat(span[1], 64)
			if err != nil {
				return 0, err
			}
			seconds += v * map[string]float64{"min": 60, "s": 1, "ms": 0.001}[span[2]]
		}
	}
	if !found {
		return 0, fmt.Errorf("systemd-analyze says %q", strings.TrimSpace(text))
	}
	return seconds, nil
}

// qemu is the pid, on this machine, of a VM's process.
func (b *bench) qemu(ctx context.Context, name string) (int, error) {
	first, err := b.hostInit(ctx)
	if err != nil {
		return 0, err
	}
	pids, err := besides(first)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if strings.Contains(strings.Join(argv(pid), " "), " guest="+name+",") {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("vm %s has no process", name)
}

// awaitAgent returns a connection to a guest agent, as soon as it answers.
func awaitAgent(ctx context.Context, socket string) (*qmp.Agent, error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	for {
		asking, stop := context.WithTimeout(ctx, 5*time.Second)
		agent, err := qmp.DialAgent(asking, socket)
		stop()
		if err == nil {
			return agent, nil
		}
		if ctx.Err() != nil || errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// kernelBegan says when the kernel of a VM began, by the VM's own uptime; to some hundredths of a second.
func kernelBegan(ctx context.Context, agent *qmp.Agent) (at time.Time, err error) {
	var handle int64
	err = agent.Call(ctx, "guest-file-open", map[string]any{"path": "/proc/uptime", "mode": "r"}, &handle)
	if err != nil {
		return at, err
	}
	var answer struct {
		Content string `json:"buf-b64"`
	}
	asked := time.Now()
	err = agent.Call(ctx, "guest-file-read", map[string]any{"handle": handle, "count": 64}, &answer)
	at = asked.Add(time.Since(asked) / 2)
	if err == nil {
		err = agent.Call(ctx, "guest-file-close", map[string]any{"handle": handle}, nil)
	}
	if err != nil {
		return at, err
	}
	text, err := base64.StdEncoding.DecodeString(answer.Content)
	if err != nil {
		return at, err
	}
	up, _, _ := strings.Cut(string(text), " ")
	seconds, err := strconv.ParseFloat(up, 64)
	return at.Add(-time.Duration(seconds * float64(time.Second))), err
}

// processBegan says when a process was started, to a tick.
func processBegan(pid int) (at time.Time, err error) {
	fields, err := stat(pid)
	if err != nil {
		return at, err
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64) // since the machine booted
	if err != nil {
		return at, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return at, err
	}
	return time.Now().Add(time.Duration(ticks)*tick - time.Duration(now.Nano())), nil
}

// byHand starts QEMU with the arguments of a VE that Polder made, but does not run.
type byHand struct {
	b      *bench
	name   string
	recipe string // file with the recipe, as the lab's host sees it
}

func (b *bench) newByHand(ctx context.Context) (*byHand, error) {
	h := &byHand{b: b, name: "byhand", recipe: "/shared/byhand.json"}
	if err := b.shareProgram(); err != nil {
		return nil, err
	}
	if _, err := b.cli(ctx, "launch", systemImage, h.name, "--model", "vm", "--no-start"); err != nil {
		return nil, err
	}
	ve, err := b.client.VE(ctx, h.name)
	if err != nil {
		return nil, err
	}
	pool := filepath.Join("/var/lib/polder/pools", ve.Pool)
	r := recipe{Dir: filepath.Join(pool, "bench-byhand"), Replace: map[string]string{
		filepath.Join("/var/lib/polder/ve", ve.ID): filepath.Join(pool, "bench-byhand"),
		filepath.Join(pool, "volumes", ve.ID):      filepath.Join(pool, "bench-byhand"),
	}}
	// Before its first boot, which makes it another one. The pool keeps disks without copy on write, and so must a reflink.
	_, err = b.inHost(ctx, "sh", "-c", `rm -rf "$1" && mkdir -m 711 "$1" && chattr +C "$1" && cp --reflink=always "$2"/disk.raw "$1"/pristine.raw`, "sh", r.Dir, filepath.Join(pool, "volumes", ve.ID))
	if err != nil {
		return nil, err
	}
	if _, err := b.cli(ctx, "start", h.name); err != nil {
		return nil, err
	}
	pid, err := b.qemu(ctx, h.name)
	if err != nil {
		return nil, err
	}
	if err := r.take(pid); err != nil {
		return nil, err
	}
	if _, err := b.cli(ctx, "stop", "--force", h.name); err != nil {
		return nil, err
	}
	networks, err := b.client.Networks(ctx)
	if err != nil {
		return nil, err
	}
	r.Bridge = networks[0].Bridge
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, err
	}
	return h, os.WriteFile(filepath.Join(b.lab(), h.recipe), content, 0o600)
}

// run returns the seconds from QEMU's start until its agent answers.
func (h *byHand) run(ctx context.Context) (float64, error) {
	out, err := h.b.inHost(ctx, sharedProgram, insideQEMU, h.recipe)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

func (h *byHand) remove(ctx context.Context) error {
	var r recipe
	content, err := os.ReadFile(filepath.Join(h.b.lab(), h.recipe))
	if err == nil {
		err = json.Unmarshal(content, &r)
	}
	if err == nil {
		_, err = h.b.inHost(ctx, "rm", "-r", r.Dir)
	}
	if err == nil {
		err = h.b.delete(ctx, h.name)
	}
	return err
}
