package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"polder/api"
)

// outcome is what came of a service: the first thing that went wrong, or none.
type outcome struct {
	service service
	model   string
	moves   []api.MoveResult
	done    string // by the load, in its own words
	loads   []string
	wrong   error
}

// tryLimit is how long one service may take, with a VE that has to be made first; with one that is emulated, emulatedLimit.
const (
	tryLimit      = 8 * time.Minute
	emulatedLimit = 30 * time.Minute
)

// try moves the VE away and home again while a service is used. A VE in which something went wrong is not used for the next.
func (s *stage) try(ctx context.Context, v service) outcome {
	o := outcome{service: v, model: s.model}
	s.say("%s, %s", v.what, s.model)
	limit := tryLimit
	if s.model == string(api.VM) {
		limit = emulatedLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if o.wrong = s.fresh(ctx); o.wrong == nil {
		o.wrong = s.used(ctx, v, &o)
	}
	if errors.Is(o.wrong, errEarly) { // only the moves say how long they take, here and now
		for _, m := range o.moves {
			s.seconds += 2 * int(m.TotalMS/1000)
		}
		s.say("once more, with %d s of load", s.seconds)
		o.moves, o.loads = nil, nil
		o.wrong = s.used(ctx, v, &o)
	}
	if ctx.Err() != nil {
		o.wrong = fmt.Errorf("not through within %s: %w", limit, o.wrong)
	}
	s.broken = o.wrong != nil
	return o
}

// used starts the service, moves it while it is used, and looks afterwards.
func (s *stage) used(ctx context.Context, v service, o *outcome) error {
	if err := s.unmark(ctx, server); err != nil {
		return err
	}
	if err := s.serve(ctx, v); err != nil {
		return fmt.Errorf("it does not start: %w", err)
	}
	finished := make(chan error, 1)
	if v.busy() {
		close(finished)
	} else {
		go func() {
			out, err := s.in(ctx, client, "sh", v.script("load"), server, strconv.Itoa(s.seconds))
			if o.done = lastLine(out); err != nil {
				err, o.done = fmt.Errorf("%s: %s", lastLine(err.Error()), strings.TrimSpace(out)), ""
			}
			finished <- err
		}()
	}
	wrong := s.moves(ctx, v, o, finished)
	if err := <-finished; err != nil && (wrong == nil || errors.Is(wrong, errEarly)) {
		wrong = fmt.Errorf("under load: %w", err)
	}
	if wrong == nil {
		wrong = s.afterwards(ctx, v, o.done)
	}
	if wrong != nil {
		return wrong
	}
	if _, err := s.in(ctx, server, "systemctl", "stop", v.unit); err != nil {
		return fmt.Errorf("it does not stop: %w", err)
	}
	return s.mark(ctx, server)
}

func (s *stage) serve(ctx context.Context, v service) error {
	size := v.container
	if s.model == string(api.VM) {
		size = v.vm
	}
	_, err := s.in(ctx, server, "sh", v.script("serve"), strconv.Itoa(size))
	return err
}

var errEarly = errors.New("the load ended before the moves did: give it more -seconds")

// settle is how long a service is used before, between and after the moves.
const settle = 4 * time.Second

// moves are both, with a moment of use before, between and after them.
func (s *stage) moves(ctx context.Context, v service, o *outcome, finished chan error) error {
	if err := wait(ctx, settle); err != nil {
		return err
	}
	before, err := s.resets(ctx)
	if err != nil {
		return err
	}
	for _, to := range []string{away, home} {
		result, err := s.move(ctx, to)
		o.loads = append(o.loads, load())
		if err != nil {
			return err
		}
		o.moves = append(o.moves, result)
		if !result.StateKept {
			return fmt.Errorf("to %s: its state was not kept: %s", to, result.Reason)
		}
		if err := wait(ctx, settle); err != nil {
			return err
		}
	}
	if state, err := s.in(ctx, server, "systemctl", "is-active", v.unit); err != nil {
		return fmt.Errorf("after the moves its unit is %q: %w", state, err)
	}
	if !v.busy() && len(finished) > 0 {
		return errEarly // also because connections may be reset in its end
	}
	after, err := s.resets(ctx)
	if err == nil && after != before {
		err = fmt.Errorf("%d connections were reset", after-before)
	}
	return err
}

// move moves the VE, and says of a failure what there is to know.
func (s *stage) move(ctx context.Context, to string) (api.MoveResult, error) {
	var result api.MoveResult
	err := s.show(ctx, &result, "move", server, "--to", to, "--mode", "live")
	if err != nil {
		err = fmt.Errorf("to %s: %s", to, lastLine(err.Error()))
		if why := s.blockers(ctx, to); why != "" {
			err = fmt.Errorf("%w; plan: %s", err, why)
		}
		if said := s.criuSaid(); said != "" {
			err = fmt.Errorf("%w; criu: %s", err, said)
		}
	}
	return result, err
}

// criuSaid are the errors in CRIU's logs of the move that failed, wherever they were written.
func (s *stage) criuSaid() string {
	var said []string
	for _, pattern := range []string{"dump.log", "restore.log"} {
		logs, _ := filepath.Glob(filepath.Join(s.dir, "h[12]/data/ve/*", pattern))
		more, _ := filepath.Glob(filepath.Join(s.dir, "h[12]/data/ve/*/*", pattern))
		for _, path := range append(logs, more...) {
			text, _ := os.ReadFile(path)
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, "Error") && len(said) < 3 {
					said = append(said, strings.TrimSpace(line))
				}
			}
		}
	}
	return strings.Join(said, " / ")
}

// resets is how many connections of the VE that puts the load on were reset so far by the other end. The kernel counts those with
// them that a program resets by closing before it has read all, as etcdctl does now and then.
func (s *stage) resets(ctx context.Context) (int, error) {
	out, err := s.in(ctx, client, "cat", "/proc/net/snmp", "/proc/net/netstat")
	if err != nil {
		return 0, err
	}
	all, err := counter(out, "Tcp:", "EstabResets")
	if err != nil {
		return 0, err
	}
	own, err := counter(out, "TcpExt:", "TCPAbortOnClose")
	return all - own, err
}

// counter finds one of the kernel's: a line of names is followed by one of values.
func counter(text, family, name string) (int, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || fields[0] != family:
		case names == nil:
			names = fields
		default:
			if i := slices.Index(names, name); i > 0 && i < len(fields) {
				return strconv.Atoi(fields[i])
			}
		}
	}
	return 0, fmt.Errorf("the kernel does not count %s", name)
}

// afterwards checks what the service has against what the load did, and that it can be started anew.
func (s *stage) afterwards(ctx context.Context, v service, done string) error {
	if out, err := s.in(ctx, server, "sh", v.script("check"), done); err != nil {
		return fmt.Errorf("afterwards: %s %s", lastLine(out), lastLine(err.Error()))
	}
	if _, err := s.in(ctx, server, "systemctl", "restart", v.unit); err != nil {
		return fmt.Errorf("it does not restart: %w", err)
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// load is this machine's, of the last minute.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
