package network

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
)

// Probe asks a VE for an echo at short intervals and takes note of when it answers: what is seen of it from outside. It is safe
// for concurrent use.
//
// The asking is done by a process of its own where Fabric.Prober says how: in this one, a request may wait for other goroutines,
// which makes the observation coarser (Observed.Every), if not wrong.
type Probe struct {
	stop  context.CancelFunc
	began chan struct{} // closed once it has asked
	done  chan struct{}
	err   error // why it ended early; to be read when done is closed

	mu   sync.Mutex
	seen Observed // guarded by mu
}

// proberStart is how long a probe may take to begin, and proberGrace to come to its end.
const (
	proberStart = 5 * time.Second
	proberGrace = time.Second
)

// Probe begins to ask target each every, until Stop or the end of ctx, and returns once it has asked for the first time (some ten
// milliseconds). It asks from the host's own port in the network, which has
// the lease from and is made when it is not there; target may be on this host or on another. All hosts must know where from
// is (as a Remote), else answers don't come back.
func (f *Fabric) Probe(ctx context.Context, cfg Config, from, target Lease, every time.Duration) (*Probe, error) {
	e, err := newEcho(from, target, every)
	if err == nil {
		var p *Probe
		if p, err = f.startProbe(ctx, cfg, from, e, every); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("network %q: probe %q: %w", cfg.Name, target.Name, err)
}

func newEcho(from, target Lease, every time.Duration) (echo, error) {
	if every <= 0 || !from.IPv4.Addr().Is4() || !target.IPv4.Addr().Is4() {
		return echo{}, api.Errorf(api.Invalid, "from %s, to %s, each %s: want two ipv4 addresses and a time", from.IPv4, target.IPv4, every)
	}
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails
	e := echo{From: from.IPv4.Addr(), To: target.IPv4.Addr(), ID: binary.BigEndian.Uint16(random[8:]), Nonce: binary.BigEndian.Uint64(random[:])}
	var err error
	if e.FromMAC, err = macKey(from.MAC); err == nil {
		e.ToMAC, err = macKey(target.MAC)
	}
	return e, err
}

func (f *Fabric) startProbe(ctx context.Context, cfg Config, from Lease, e echo, every time.Duration) (*Probe, error) {
	port, err := f.hostPortUp(cfg, from)
	if err != nil {
		return nil, err
	}
	socket, err := openEcho(port)
	if err != nil {
		return nil, err
	}
	p := &Probe{began: make(chan struct{}), done: make(chan struct{})}
	ctx, p.stop = context.WithCancel(ctx)
	go func() {
		defer close(p.done)
		defer func() { _ = unix.Close(socket) }()
		if len(f.Prober) == 0 {
			newAsker(e, every, socket).run(ctx, p.saw)
			return
		}
		if p.err = runProber(ctx, f.Prober, order{e, every, os.Getpid(), socket}, p); p.err != nil {
			f.log.Warn("a probe failed", "address", e.To, "error", p.err)
		}
	}()
	return p, p.await(ctx)
}

// await returns when the probe has begun.
func (p *Probe) await(ctx context.Context) error {
	late := time.NewTimer(proberStart)
	defer late.Stop()
	select {
	case <-p.began:
		return nil
	case <-p.done:
		if p.err != nil {
			return p.err
		}
		return api.Errorf(api.Cancelled, "it was ended before it began: %w", context.Canceled)
	case <-late.C:
		p.stop()
		return api.Errorf(api.Unavailable, "it has not begun within %s", proberStart)
	case <-ctx.Done():
		return api.Errorf(api.Cancelled, "begin: %w", ctx.Err())
	}
}

func (p *Probe) saw(seen Observed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen.Sent == 0 && seen.Sent > 0 {
		close(p.began)
	}
	p.seen = seen
}

// Seen is what has been observed up to some milliseconds ago.
func (p *Probe) Seen() Observed {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

// Stop ends the probe and says what was observed. It can be repeated.
func (p *Probe) Stop() Observed {
	p.stop()
	<-p.done
	return p.Seen()
}

// order is what a process that probes for another one is told.
type order struct {
	Echo   echo          `json:"echo"`
	Every  time.Duration `json:"every_ns"`
	PID    int           `json:"pid"`    // of the other
	Socket int           `json:"socket"` // descriptor in the other
}

// runProber runs a process that probes, until ctx is done: then its standard input ends, and it says what it saw last.
func runProber(ctx context.Context, argv []string, o order, p *Probe) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	in, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = in.Close(); _ = end.Close() }()
	if _, err := end.Write(append(text, '\n')); err != nil {
		return err
	}
	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	defer context.AfterFunc(ctx, func() {
		_ = end.Close()
		time.AfterFunc(proberGrace, kill)
	})()
	_, err = command.Command{Name: argv[0], Args: argv[1:], Stdin: in, Stdout: &reports{probe: p}}.Run(running)
	return err
}

// reports reads what such a process says: a line of JSON each time.
type reports struct {
	probe *Probe
	rest  []byte
}

func (r *reports) Write(text []byte) (int, error) {
	r.rest = append(r.rest, text...)
	for {
		line, rest, ok := bytes.Cut(r.rest, []byte("\n"))
		if !ok {
			return len(text), nil
		}
		r.rest = rest
		var seen Observed
		if err := json.Unmarshal(line, &seen); err != nil {
			return 0, err
		}
		r.probe.saw(seen)
	}
}

// ProberArg is the argument by which this program becomes a Prober.
const ProberArg = "probe"

// Prober is the process that a probe runs in (see Fabric.Prober): it reads from in what to do, writes to out what it sees, and ends when
// in does.
func Prober(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	text, err := lines.ReadBytes('\n')
	var o order
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err != nil {
		return fmt.Errorf("read what to probe: %w", err)
	}
	socket, err := takeSocket(o.PID, o.Socket)
	if err != nil {
		return fmt.Errorf("take socket %d of process %d: %w", o.Socket, o.PID, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		stop()
	}()
	// Whoever reads may be slow, and must not keep up the asking: what is not yet written gives way to what is newer.
	latest, written := make(chan Observed, 1), make(chan error)
	go func() {
		var err error
		encoder := json.NewEncoder(out)
		for seen := range latest {
			err = errors.Join(err, encoder.Encode(seen))
		}
		written <- err
	}()
	newAsker(o.Echo, o.Every, socket).run(ctx, func(seen Observed) {
		select {
		case <-latest:
		default:
		}
		latest <- seen
	})
	close(latest)
	return <-written
}

// takeSocket takes a copy of another process's descriptor, so that it need not be inherited: it is of the namespace that it was opened in.
func takeSocket(pid, fd int) (int, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(process) }()
	return unix.PidfdGetfd(process, fd, 0)
}
