package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"polder/api"
	"polder/internal/model"
)

const (
	// defaultDowntime is aimed at when no other is wanted.
	defaultDowntime = 300 * time.Millisecond
	// cutOverPatience is how long the VE may stand still before its move is given up.
	cutOverPatience = 8 * time.Second
	// memoryChannels carry the memory side by side. More than these are of use only beyond 10 Gb/s.
	memoryChannels = 2
)

// Send moves the VE's disk and memory. The disk first, until all that the VE writes goes to both ends; then its memory, until
// so little is left that the VE need stand still only for a moment; then that.
//
// It talks to QEMU by a monitor of its own (move.sock), so that whatever else is done with the VE meanwhile (Pause, Stop, Exec,
// Adopt) never waits for it. Stop ends the move by ending QEMU.
func (m *Model) Send(ctx context.Context, ve model.Spec, s model.Session, o model.SendOptions) (model.Sent, error) {
	sent, err := m.send(ctx, ve, s, o)
	if err != nil {
		if ctx.Err() != nil {
			err = cutOff(ctx)
		}
		return sent, fmt.Errorf("send vm %q: %w", ve.Name, err)
	}
	return sent, nil
}

// cutOff is the error of a move whose caller gave up: what that broke is no news.
func cutOff(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return api.Errorf(api.Cancelled, "%w", context.Cause(ctx))
	}
	return api.Errorf(api.Unavailable, "%w", context.Cause(ctx))
}

// sending is one Send.
type sending struct {
	*monitor
	ve      model.Spec
	session model.Session
	wire    *wire
	options model.SendOptions
	logEnd  int64 // of the console, as far as it was sent
	counted int64 // bytes of the migration that the session knows of
	sent    model.Sent
}

func (m *Model) send(ctx context.Context, ve model.Spec, s model.Session, o model.SendOptions) (sent model.Sent, err error) {
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return sent, err
	}
	defer q.Close()
	if o.MaxDowntime <= 0 {
		o.MaxDowntime = defaultDowntime
	}
	x := &sending{monitor: q, ve: ve, session: s, options: o}
	if err := q.tidy(ctx); err != nil { // of an earlier move, whose Keep was cut off
		return sent, err
	}
	hello, err := x.prepare(ctx)
	if err != nil {
		return sent, err
	}
	ctx, x.wire, err = talk(ctx, s)
	if err != nil {
		return sent, err
	}
	defer func() { x.wire.close(err) }()
	if err := x.wire.say(note{Kind: "hello", Hello: hello}); err != nil {
		return sent, err
	}
	answer, err := x.wire.hear(ctx, "ready")
	if err != nil {
		return sent, err
	}
	if answer.Ready == nil {
		return sent, errors.New("the other host does not say where its QEMU listens")
	}
	for _, step := range []func(context.Context, *ready) error{x.copyDisk, x.copyMemory, x.cutOver} {
		if err := step(ctx, answer.Ready); err != nil {
			return x.sent, x.wire.reason(ctx, err)
		}
	}
	return x.sent, nil
}

// prepare leaves the mark, pauses the VE of a warm move, and gathers what the target needs to know.
func (x *sending) prepare(ctx context.Context) (*hello, error) {
	status, err := x.status(ctx)
	if err != nil {
		return nil, err
	}
	mark := moving{Version: moveVersion, Paused: status == "paused", PostCopy: x.options.PostCopy}
	if before, err := readMoving(x.ve); err != nil {
		return nil, err
	} else if before != nil {
		mark.Paused = before.Paused
	}
	h := &hello{Version: moveVersion, Paused: mark.Paused, Format: x.ve.Root.Format, Channels: memoryChannels, PostCopy: x.options.PostCopy}
	if h.Machine, err = os.ReadFile(filepath.Join(x.ve.Dir, "machine.json")); err != nil {
		return nil, err
	}
	var r running
	if err := readJSON(runningFile(x.ve), &r); err != nil {
		return nil, err
	}
	h.Accelerator = r.Accelerator
	if h.Vars, err = readIfThere(varsFile(x.ve)); err != nil {
		return nil, err
	}
	if h.Seed, err = readIfThere(seedFile(x.ve)); err != nil {
		return nil, err
	}
	if h.Log, x.logEnd, err = logFrom(x.ve.LogPath(), 0); err != nil {
		return nil, err
	}
	if h.Backed, err = x.backed(ctx); err != nil {
		return nil, err
	}
	if err := writeJSON(movingFile(x.ve), mark); err != nil {
		return nil, err
	}
	if x.options.Mode == api.Warm {
		if err := x.stand(ctx); err != nil {
			return nil, err
		}
	}
	if err := writeKey(x.ve, x.session.Secret()); err != nil {
		return nil, err
	}
	return h, x.do(ctx, "object-add", credentials(x.ve, "client"))
}

// stand stops the VE for the whole of a warm move.
func (x *sending) stand(ctx context.Context) error {
	x.sent.Still = time.Now()
	if err := x.do(ctx, "stop", nil); err != nil {
		return err
	}
	return x.gates(ctx, x.ve, false)
}

// gates opens or shuts the gates of all NICs.
func (m *monitor) gates(ctx context.Context, ve model.Spec, open bool) error {
	var errs []error
	for _, nic := range ve.NICs {
		errs = append(errs, ve.Plug.Gate(ctx, nic, open))
	}
	return errors.Join(errs...)
}

// copyMemory lets QEMU copy the memory until the VE stands still for the last of it, with its disks still in use.
func (x *sending) copyMemory(ctx context.Context, r *ready) error {
	bandwidth := int64(x.options.Bandwidth)
	if bandwidth <= 0 {
		bandwidth = noLimit
	}
	pace := newPace(x.options.MaxDowntime)
	hasten(x.ve)
	if err := x.do(ctx, "migrate-set-capabilities", moveCapabilities(x.options.PostCopy)); err != nil {
		return err
	}
	if err := x.do(ctx, "migrate-set-parameters", map[string]any{
		"tls-creds": moveKey, "tls-hostname": "", "multifd-channels": memoryChannels, "max-bandwidth": bandwidth,
		"max-postcopy-bandwidth": int64(x.options.Bandwidth),
		"downtime-limit":         pace.limit.Milliseconds(),
		// From the second round on that hardly gains, the VE is slowed down, more and more.
		"throttle-trigger-threshold": 85, "cpu-throttle-initial": 20, "cpu-throttle-increment": 10, "max-cpu-throttle": 99,
	}); err != nil {
		return err
	}
	uri := "tcp:" + net.JoinHostPort(x.session.Peer().String(), r.MemoryPort)
	if err := x.do(ctx, "migrate", map[string]any{"uri": uri}); err != nil {
		return err
	}
	// QEMU flushes the disk once the VE stands still: then there is to be little left of that. An error is QEMU's to tell.
	disk, err := os.Open(x.ve.Root.Disk)
	if err != nil {
		return err
	}
	defer disk.Close()
	end := syncing(disk, func(error) {})
	defer end() //nolint:errcheck // as above
	asked := false
	return x.await(ctx, 20*time.Millisecond, func() (bool, error) {
		got, err := x.migration(ctx)
		if err == nil {
			err = got.failed()
		}
		if err != nil {
			return false, err
		}
		x.count(got)
		if got.Status == "pre-switchover" {
			x.sent.Way = pace.way(got, asked)
			return true, nil
		}
		if x.options.PostCopy {
			// Once all has been sent, what was written meanwhile can follow.
			if asked || got.Status != "active" || got.RAM.Rounds < 2 {
				return false, nil
			}
			asked = true
			return false, x.do(ctx, "migrate-start-postcopy", nil)
		}
		change, err := pace.next(got, time.Now())
		if err != nil || change == nil {
			return false, err
		}
		return false, x.do(ctx, "migrate-set-parameters", change)
	})
}

// noLimit is more than any link carries, in bytes per second.
const noLimit = 1 << 40

// count tells the session and whoever watches what has been sent.
func (x *sending) count(got migration) {
	if n := got.RAM.Transferred - x.counted; n > 0 && !x.options.PostCopy { // Serve counts all of it
		x.counted += n
		x.add(n)
	}
	if x.options.Progress != nil && got.RAM.Total > 0 {
		x.options.Progress(got.RAM.Transferred, got.RAM.Transferred+got.RAM.Remaining, "bytes")
	}
}

func (x *sending) add(n int64) {
	x.session.Count(api.Bytes(n))
	x.sent.Bytes += api.Bytes(n)
}

// cutOver sends the last of the VE, which stands still.
func (x *sending) cutOver(ctx context.Context, _ *ready) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cutOverPatience+x.options.MaxDowntime,
		api.Errorf(api.Unavailable, "the VE has stood still for %s", cutOverPatience+x.options.MaxDowntime))
	defer cancel()
	if x.sent.Still.IsZero() {
		if x.sent.Still = x.still; x.still.IsZero() {
			x.sent.Still = time.Now() // it was paused all the time
		}
	}
	shut := make(chan error, 1)
	go func() { shut <- x.gates(ctx, x.ve, false) }()
	// All that the VE has written is at the target by now, which can put it on its disk beside the rest.
	log, _, err := logFrom(x.ve.LogPath(), x.logEnd)
	if err == nil {
		err = x.wire.say(note{Kind: "still", Log: log})
	}
	if err := errors.Join(err, x.endMirror(ctx), <-shut); err != nil {
		return err
	}
	if err := x.wire.say(note{Kind: "alone"}); err != nil {
		return err
	}
	if _, err := x.wire.hear(ctx, "go"); err != nil {
		return err
	}
	if !x.options.PostCopy {
		if err := x.sendLast(ctx); err != nil {
			return err
		}
	}
	if _, err = x.wire.hear(ctx, "whole"); err != nil {
		return err
	}
	return x.wire.say(note{Kind: "done"})
}

// sendLast sends what the VE has written since the last round, and its devices.
func (x *sending) sendLast(ctx context.Context) error {
	if err := x.do(ctx, "migrate-continue", preSwitchover); err != nil {
		return err
	}
	return x.await(ctx, 5*time.Millisecond, func() (bool, error) {
		got, err := x.migration(ctx)
		if err == nil {
			err = got.failed()
		}
		if err == nil {
			x.count(got)
		}
		return got.Status == "completed", err
	})
}

var preSwitchover = map[string]any{"state": "pre-switchover"}

// backed says whether the disk is a qcow2 image on top of another.
func (m *monitor) backed(ctx context.Context) (bool, error) {
	var list []struct {
		Name  string `json:"node-name"`
		Image struct {
			Backing string `json:"backing-filename"`
		} `json:"image"`
	}
	if err := m.ask(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &list); err != nil {
		return false, err
	}
	for _, entry := range list {
		if entry.Name == diskFormat {
			return entry.Image.Backing != "", nil
		}
	}
	return false, fmt.Errorf("qemu knows no disk %q", diskFormat)
}

// settled reads a machine as another host tells it.
func settled(data json.RawMessage) (got machine, err error) {
	if err := json.Unmarshal(data, &got); err != nil {
		return got, fmt.Errorf("the VE's machine: %w", err)
	}
	if got.Version > machineVersion {
		return got, api.Errorf(api.Unsupported, "the VE's machine has version %d, newer than %d: use a newer polder", got.Version, machineVersion)
	}
	if got.Machine == "" || got.CPU == "" {
		return got, errors.New("the VE's machine: it has no type or no CPU")
	}
	return got, nil
}
