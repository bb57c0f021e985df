package vm

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"polder/api"
	"polder/internal/model"
	"polder/internal/qmp"
)

// guestPath is the environment of every command, before what the caller adds.
const guestPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	// piece is how much one call reads or writes, in bytes.
	piece = 1 << 20
	// poll is how often a command that says nothing is looked at, at first and at most; a terminal, where somebody waits
	// for an echo, more often.
	pollFirst, pollMost, pollTTY = 5 * time.Millisecond, 200 * time.Millisecond, 40 * time.Millisecond
	// linger is how long output may follow the end of a command from what it left in the background.
	linger = time.Second
	// cleanPatience bounds the tidying up after a command.
	cleanPatience = 20 * time.Second
)

// Exec runs a command inside through the guest agent; see execScript for how its streams travel. A young VE's agent is
// waited for.
func (m *Model) Exec(ctx context.Context, ve model.Spec, req api.ExecRequest, streams model.Streams) (int, error) {
	if len(req.Command) == 0 {
		return 0, api.Errorf(api.Invalid, "no command given")
	}
	if err := m.awaitAgent(ctx, ve); err != nil {
		return 0, err
	}
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	s := &session{line: m.attached(ve).agent, dir: "/run/polder-exec/" + hex.EncodeToString(id), streams: streams, poll: pollMost}
	if req.TTY {
		s.poll = pollTTY
	}
	defer s.tidy(ctx)
	err := s.start(ctx, req)
	code := 0
	if err == nil {
		code, err = s.follow(ctx)
	}
	return code, explain(ctx, ve, err)
}

// explain says why the agent's line broke, where that is known.
func explain(ctx context.Context, ve model.Spec, err error) error {
	if err == nil || ctx.Err() != nil || api.KindOf(err) != api.Internal {
		return err
	}
	w, lookErr := find(ve)
	over := lookErr == nil && w == nil
	if w != nil {
		// Its sockets end a moment before it does.
		ending, cancel := context.WithTimeout(ctx, linger)
		over = gone(ending, w)
		cancel()
		w.Close()
	}
	if over {
		return api.Errorf(api.Unavailable, "vm %q ended while the command ran", ve.Name)
	}
	return api.Errorf(api.Unavailable, "the guest agent was lost while the command ran: %w", err)
}

// session is one command that runs inside.
type session struct {
	line    *agentLine
	dir     string // inside
	streams model.Streams
	wrapper int64 // pid of the script inside; 0: not started
	poll    time.Duration

	input       int64  // handle of control; 0: not open
	journal     int64  // handle
	rest        string // of the journal: a line that is not whole yet
	outputs     []*output
	code        int
	codeKnown   bool
	wrapperGone bool
}

// start runs the script and waits until its journal is there.
func (s *session) start(ctx context.Context, req api.ExecRequest) error {
	env, args := execArguments(s.dir, req, s.streams.Stdin != nil)
	var err error
	s.wrapper, err = s.line.spawn(ctx, env, "/bin/sh", append([]string{"-c", execScript, "polder"}, args...)...)
	if err != nil {
		return err
	}
	s.outputs = []*output{{name: "out", to: s.streams.Stdout, handle: -1}}
	if !req.TTY {
		s.outputs = append(s.outputs, &output{name: "err", to: s.streams.Stderr, handle: -1})
	}
	for wait := pollFirst; ; wait = min(2*wait, pollMost) {
		s.journal, err = s.line.open(ctx, s.dir+"/journal", "r")
		if err == nil || unlessRefused(err) != nil {
			return err
		}
		status, err := s.line.status(ctx, s.wrapper)
		if err != nil {
			return err
		}
		if status.Exited {
			s.wrapperGone = true
			// It may have written the journal and ended between the two questions.
			if s.journal, err = s.line.open(ctx, s.dir+"/journal", "r"); err == nil || unlessRefused(err) != nil {
				return err
			}
			text, _ := base64.StdEncoding.DecodeString(status.Stderr)
			return api.Errorf(api.Invalid, "the command could not be set up: %s", strings.TrimSpace(string(text)))
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// execArguments are the script's environment and arguments.
func execArguments(dir string, req api.ExecRequest, input bool) (env, args []string) {
	env = append([]string{guestPath}, req.Env...)
	user := req.User
	if user == "root" || user == "0" {
		user = "" // what the agent is
	}
	in := "0"
	if input {
		in = "1"
	}
	if !req.TTY {
		return env, append([]string{dir, user, req.Dir, "", in}, req.Command...)
	}
	env = append([]string{"TERM=xterm-256color"}, env...)
	rows, cols := req.Rows, req.Cols
	if rows == 0 || cols == 0 {
		rows, cols = 24, 80
	}
	cwd := req.Dir
	if cwd == "" {
		cwd = "/"
	}
	line := fmt.Sprintf("stty sane rows %d cols %d; cd -- %s || exit 126; exec", rows, cols, quote(cwd))
	quoted := make([]string, len(req.Command))
	for i, a := range req.Command {
		quoted[i] = quote(a)
	}
	return env, []string{dir, user, req.Dir, line, in, strings.Join(quoted, " ")}
}

// quote makes one word of a POSIX shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// follow serves the command's streams until it has ended.
func (s *session) follow(ctx context.Context) (int, error) {
	group, inner := errgroup.WithContext(ctx)
	feeding, stopFeeding := context.WithCancel(inner)
	if s.streams.Stdin != nil {
		group.Go(func() error { return s.feed(feeding) })
	}
	controlling, stopControl := context.WithCancel(inner)
	group.Go(func() error { return s.control(controlling) })
	group.Go(func() error {
		defer stopControl()
		defer stopFeeding()
		return s.drain(inner)
	})
	err := group.Wait()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		s.kill(ctx)
		return 0, err
	}
	return s.code, nil
}

// drain hands out output until the command has ended and all of its output was read.
func (s *session) drain(ctx context.Context) error {
	var ended time.Time // when it was, with output still open
	for wait := pollFirst; ; {
		// The journal first: what it says is whole is read whole by what follows.
		if err := s.readJournal(ctx); err != nil {
			return err
		}
		moved, open := false, false
		for _, o := range s.outputs {
			n, err := o.read(ctx, s.line, s.dir)
			if err != nil {
				return err
			}
			moved, open = moved || n > 0, open || !o.done
		}
		switch {
		case s.codeKnown && !open:
			return nil
		case moved:
			wait, ended = pollFirst, time.Time{}
			continue
		case s.codeKnown && ended.IsZero():
			ended = time.Now()
		case s.codeKnown && time.Since(ended) > linger:
			return nil // something in the background holds the output open
		}
		if !s.codeKnown {
			if err := s.checkWrapper(ctx, wait); err != nil {
				return err
			}
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(wait*3/2, s.poll)
	}
}

// checkWrapper notices that the script itself was killed, without asking at each turn.
func (s *session) checkWrapper(ctx context.Context, wait time.Duration) error {
	if wait < s.poll || s.wrapperGone {
		return nil
	}
	status, err := s.line.status(ctx, s.wrapper)
	if err != nil || !status.Exited {
		return err
	}
	s.wrapperGone = true
	if err := s.readJournal(ctx); err != nil || s.codeKnown {
		return err
	}
	return api.Errorf(api.Unavailable, "the command's guardian inside was killed (signal %d)", status.Signal)
}

func (s *session) readJournal(ctx context.Context) error {
	data, err := s.line.read(ctx, s.journal, 64<<10)
	if err != nil {
		return err
	}
	lines := strings.Split(s.rest+string(data), "\n")
	s.rest = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		subject, what, _ := strings.Cut(line, " ")
		if subject == "exit" {
			s.code, err = strconv.Atoi(what)
			s.codeKnown = err == nil
			continue
		}
		for _, o := range s.outputs {
			if o.name == subject {
				o.note(what)
			}
		}
	}
	return nil
}

// output is one stream that the command writes.
type output struct {
	name   string
	to     io.Writer
	handle int64 // of the piece being read; -1: none is open
	at     int   // its number
	newest int   // the piece being written
	ended  bool  // nothing is written any more
	failed bool  // inside, for want of room
	done   bool
}

func (o *output) note(what string) {
	switch what {
	case "end":
		o.ended = true
	case "failed":
		o.failed = true
	default:
		if n, err := strconv.Atoi(what); err == nil {
			o.newest = n
		}
	}
}

// read hands out what there is of one piece, and goes on to the next when it is whole.
func (o *output) read(ctx context.Context, line *agentLine, dir string) (n int, err error) {
	if o.done {
		return 0, nil
	}
	path := fmt.Sprintf("%s/%s.%d", dir, o.name, o.at)
	if o.handle < 0 {
		if o.handle, err = line.open(ctx, path, "r"); err != nil {
			o.handle = -1
			if o.failed {
				return 0, o.failure()
			}
			return 0, unlessRefused(err) // it is about to be made
		}
	}
	for {
		data, err := line.read(ctx, o.handle, piece)
		if err != nil {
			return n, err
		}
		if n += len(data); len(data) > 0 && o.to != nil {
			if _, err := o.to.Write(data); err != nil {
				return n, err
			}
		}
		if len(data) < piece {
			break
		}
	}
	switch {
	case o.at < o.newest:
		// A moment ago it was whole, so all of it has been read.
		done := o.handle
		o.handle = -1
		if err := line.closeFile(ctx, done); err != nil {
			return n, err
		}
		if err := truncate(ctx, line, path); err != nil {
			return n, err
		}
		o.at++
		return n + 1, nil
	case o.failed:
		return n, o.failure()
	case o.ended && n == 0:
		o.done = true
	}
	return n, nil
}

func (o *output) failure() error {
	return api.Errorf(api.Exhausted, "the command's output could not be kept: is /run in the ve full?")
}

// unlessRefused drops an error by which the agent says that a file is not there; others mean that it does not answer.
func unlessRefused(err error) error {
	var refusal *qmp.Error
	if errors.As(err, &refusal) {
		return nil
	}
	return err
}

func truncate(ctx context.Context, line *agentLine, path string) error {
	handle, err := line.open(ctx, path, "w")
	if err != nil {
		return err
	}
	return line.closeFile(ctx, handle)
}

var signalName = regexp.MustCompile(`^[A-Z][A-Z0-9]{1,9}$`)

// control passes signals and window sizes on. One that fails is not worth the command's life.
func (s *session) control(ctx context.Context) error {
	signals, resize := s.streams.Signals, s.streams.Resize
	for {
		select {
		case name, ok := <-signals:
			if !ok {
				signals = nil
			} else if name = strings.TrimPrefix(name, "SIG"); signalName.MatchString(name) {
				_ = s.line.run(ctx, killScript, s.dir, name)
			}
		case size, ok := <-resize:
			if !ok {
				resize = nil
			} else {
				_ = s.line.run(ctx, resizeScript, s.dir, strconv.Itoa(int(size.Rows)), strconv.Itoa(int(size.Cols)))
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// kill kills the command after its Exec was cut off.
func (s *session) kill(ctx context.Context) {
	if s.codeKnown || s.wrapperGone {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanPatience)
	defer cancel()
	_ = s.line.run(ctx, killScript, s.dir, "KILL")
}

// tidy removes what the session left inside, and lets the agent forget it. A VE that is gone has nothing left.
func (s *session) tidy(ctx context.Context) {
	if s.wrapper == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanPatience)
	defer cancel()
	handles := []int64{s.input, s.journal}
	for _, o := range s.outputs {
		handles = append(handles, o.handle)
	}
	for _, h := range handles {
		if h > 0 {
			if err := s.line.closeFile(ctx, h); errors.Is(err, context.DeadlineExceeded) {
				return // the agent is gone
			}
		}
	}
	if status, err := s.line.status(ctx, s.wrapper); err == nil && status.Exited {
		s.wrapperGone = true
	}
	script := cleanScript
	if s.wrapperGone {
		script = `rm -rf "$1"` // its pids may be others' by now
	}
	_ = s.line.run(ctx, script, s.dir)
	if !s.wrapperGone {
		_, _ = s.line.status(ctx, s.wrapper)
	}
}
