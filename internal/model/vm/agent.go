package vm

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/qmp"
)

const (
	// bootPatience is how old a VE may be for its agent to be still expected, and for how long; emulated ones boot slowly,
	// 105 s were seen on a busy host.
	bootPatience    = 2 * time.Minute
	bootPatienceTCG = 4 * time.Minute
	// agentPatience is how long the agent of an older VE may be silent: it restarts, or the VE reboots, which an emulated one
	// does slowly.
	agentPatience    = 10 * time.Second
	agentPatienceTCG = 90 * time.Second
	// syncPatience is how long to wait for an agent that may have come up meanwhile before asking afresh.
	syncPatience = 5 * time.Second
	// callPatience bounds one call; the largest carries 1 MiB, through an emulated CPU perhaps.
	callPatience = 30 * time.Second
	// finishPatience is how much longer a call may take when nobody waits for its result any more.
	finishPatience = 2 * time.Second
)

// agentLine is the one connection to a VE's guest agent, which takes one call at a time. Safe for concurrent use.
type agentLine struct {
	path string
	turn chan struct{} // holds one token; guards agent
	// agent is nil when not connected.
	agent *qmp.Agent
}

func newAgentLine(path string) *agentLine {
	l := &agentLine{path: path, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// with runs fn with a connection that is in step.
func (l *agentLine) with(ctx context.Context, fn func(*qmp.Agent) error) error {
	select {
	case <-l.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { l.turn <- struct{}{} }()
	if l.agent != nil && l.agent.Broken() {
		l.agent.Close()
		l.agent = nil
	}
	if l.agent == nil {
		dial, cancel := context.WithTimeout(ctx, syncPatience)
		defer cancel()
		agent, err := qmp.DialAgent(dial, l.path)
		if err != nil {
			return err
		}
		l.agent = agent
	}
	return fn(l.agent)
}

// call runs one command of the agent. When ctx ends, a call under way may still come to its end: one that is broken off
// costs everybody the connection.
func (l *agentLine) call(ctx context.Context, command string, arguments, result any) error {
	return l.with(ctx, func(a *qmp.Agent) error {
		calling, cancel := context.WithTimeout(context.WithoutCancel(ctx), callPatience)
		defer cancel()
		defer context.AfterFunc(ctx, func() { time.AfterFunc(finishPatience, cancel) })()
		return a.Call(calling, command, arguments, result)
	})
}

// halt has the agent power the system off.
func (l *agentLine) halt(ctx context.Context) error {
	return l.with(ctx, func(a *qmp.Agent) error { return a.Send(ctx, "guest-shutdown", map[string]any{"mode": "powerdown"}) })
}

// close ends the connection, waiting for a call under way.
func (l *agentLine) close() {
	<-l.turn
	if l.agent != nil {
		l.agent.Close()
		l.agent = nil
	}
	l.turn <- struct{}{}
}

// AgentPing waits until the VE's guest agent answers, or ctx ends.
func (m *Model) AgentPing(ctx context.Context, ve model.Spec) error {
	l := m.attached(ve).agent
	for {
		err := l.call(ctx, "guest-ping", nil, nil)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if pid, err := holder(ve); err != nil {
			return err
		} else if pid == 0 {
			return notRunning(ve)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			// It refused or hung up; one that is silent has taken its time already.
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
	}
}

// awaitAgent waits for the agent as long as it makes sense: through the boot of a young VE, for a moment else.
func (m *Model) awaitAgent(ctx context.Context, ve model.Spec) error {
	if pid, err := holder(ve); err != nil {
		return err
	} else if pid == 0 {
		return notRunning(ve)
	}
	patience := agentPatience
	var r running
	if err := readJSON(runningFile(ve), &r); err == nil {
		boot := bootPatience
		if r.Accelerator == accelName(false) {
			boot, patience = bootPatienceTCG, agentPatienceTCG
		}
		if time.Since(r.StartedAt) < boot {
			patience = boot
		}
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := m.AgentPing(wait, ve)
	if err != nil && ctx.Err() == nil && api.KindOf(err) != api.Precondition {
		return api.Errorf(api.Unavailable, "the guest agent does not answer after %s: the image needs qemu-guest-agent, installed and running (%w)", patience, err)
	}
	return err
}

// Addresses are those the system inside has on its interfaces, by its agent's word, without loopback and link-local.
// Networks are left empty: the agent does not know them.
func (m *Model) Addresses(ctx context.Context, ve model.Spec) ([]api.Address, error) {
	var interfaces []struct {
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			Address string `json:"ip-address"`
			Prefix  int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := m.attached(ve).agent.call(ctx, "guest-network-get-interfaces", nil, &interfaces); err != nil {
		return nil, fmt.Errorf("addresses of vm %q: %w", ve.Name, err)
	}
	found := []api.Address{}
	for _, i := range interfaces {
		for _, a := range i.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if err != nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
				continue
			}
			prefix := netip.PrefixFrom(ip, a.Prefix)
			if prefix.IsValid() {
				found = append(found, api.Address{MAC: i.MAC, Address: prefix.String()})
			}
		}
	}
	return found, nil
}

// Files of the system inside.

func (l *agentLine) open(ctx context.Context, path, mode string) (handle int64, err error) {
	err = l.call(ctx, "guest-file-open", map[string]any{"path": path, "mode": mode}, &handle)
	return handle, err
}

// closeFile closes a file also when ctx has ended: the agent would keep it open for good.
func (l *agentLine) closeFile(ctx context.Context, handle int64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanPatience)
	defer cancel()
	return l.call(ctx, "guest-file-close", map[string]any{"handle": handle}, nil)
}

func (l *agentLine) read(ctx context.Context, handle int64, most int) ([]byte, error) {
	var got struct {
		Data string `json:"buf-b64"`
	}
	if err := l.call(ctx, "guest-file-read", map[string]any{"handle": handle, "count": most}, &got); err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(got.Data)
}

// write writes data whole; a full disk inside is an error.
func (l *agentLine) write(ctx context.Context, handle int64, data []byte) error {
	args := map[string]any{"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(data)}
	if err := l.call(ctx, "guest-file-write", args, nil); err != nil {
		return err
	}
	return l.call(ctx, "guest-file-flush", map[string]any{"handle": handle}, nil)
}

// spawned is a process that the agent started.
type spawned struct {
	Exited bool   `json:"exited"`
	Code   int    `json:"exitcode"`
	Signal int    `json:"signal"`
	Stderr string `json:"err-data"` // base64
}

func (l *agentLine) spawn(ctx context.Context, env []string, path string, args ...string) (pid int64, err error) {
	var got struct {
		PID int64 `json:"pid"`
	}
	err = l.call(ctx, "guest-exec", map[string]any{"path": path, "arg": args, "env": env, "capture-output": true}, &got)
	if qmp.IsClass(err, "CommandNotFound") || qmp.IsClass(err, "CommandDisabled") {
		return 0, api.Errorf(api.Unsupported, "the guest agent does not allow it (guest-exec, guest-file-…): allow its commands in the image's qemu-ga.conf: %w", err)
	}
	return got.PID, err
}

func (l *agentLine) status(ctx context.Context, pid int64) (s spawned, err error) {
	err = l.call(ctx, "guest-exec-status", map[string]any{"pid": pid}, &s)
	return s, err
}

// run has the agent run a short command and waits for its end.
func (l *agentLine) run(ctx context.Context, script string, args ...string) error {
	pid, err := l.spawn(ctx, []string{guestPath}, "/bin/sh", append([]string{"-c", script, "polder"}, args...)...)
	if err != nil {
		return err
	}
	for wait := 5 * time.Millisecond; ; wait = min(wait*2, 200*time.Millisecond) {
		if s, err := l.status(ctx, pid); err != nil || s.Exited {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}
