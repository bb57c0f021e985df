//go:build integration

package daemon

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/client"
	"polder/internal/lab"
	"polder/internal/operation"
)

// deed is what is done to the world while a move stands at a stop.
type deed string

const (
	nothing      deed = "nothing"
	failure      deed = "the step fails"
	cancel       deed = "cancel"
	sourceDaemon deed = "the source's daemon is killed"
	targetDaemon deed = "the target's daemon is killed"
	sourceHost   deed = "the source dies"
	targetHost   deed = "the target dies"
	leaderHost   deed = "the store's leader dies"
	sourceLink   deed = "the source's link is cut"
	targetLink   deed = "the target's link is cut"
	cutAfter     deed = "the source's link is cut just after"
	killAfter    deed = "the source dies just after"
)

// moveCase is one move with one deed.
type moveCase struct {
	how  string // live, warm, cold; or stopped: of a VE that does not run
	stop stop
	deed deed
}

func (c moveCase) String() string {
	return fmt.Sprintf("%s/%s/%s/%s", c.how, c.stop.Step, c.stop.Phase, c.deed)
}

func (c moveCase) undo() bool {
	return c.stop.Phase == operation.BeforeUndo || c.stop.Phase == operation.AfterUndo
}

// entered says whether the point of no return is behind.
func (c moveCase) entered() bool { return c.stop.Step == "enter" }

// matrix is every step, in every phase, with every deed.
func matrix(how string, deeds ...deed) (cases []moveCase) {
	for _, step := range []string{"plan", "prepare", "copy", "enter"} {
		for _, phase := range []operation.Phase{operation.BeforeDo, operation.AfterDo, operation.BeforeUndo, operation.AfterUndo} {
			for _, d := range deeds {
				c := moveCase{how, stop{Step: step, Phase: phase}, d}
				if c.undo() && (c.entered() || d == cancel) {
					continue
				}
				cases = append(cases, c)
			}
		}
	}
	return cases
}

// chosen are the cases that are tried each time; all of them are when POLDER_MOVE_FAULTS is "all".
func chosen() (cases []moveCase) {
	if text := os.Getenv("POLDER_MOVE_FAULTS"); text != "" {
		for _, how := range strings.Split(text, ",") {
			all := []deed{failure, cancel, sourceDaemon, targetDaemon, sourceHost, targetHost, leaderHost, sourceLink, targetLink}
			cases = append(cases, matrix(how, all...)...)
			for range 4 {
				cases = append(cases, moveCase{how, stop{Step: "copy", Phase: operation.AfterDo}, cutAfter}, moveCase{how, stop{Step: "copy", Phase: operation.AfterDo}, killAfter})
			}
		}
		return cases
	}
	before, after := stop{Step: "copy", Phase: operation.AfterDo}, stop{Step: "enter", Phase: operation.BeforeDo}
	for _, c := range []struct {
		deed
		stop
	}{
		{failure, before},
		{cancel, before},
		{sourceDaemon, before},
		{targetDaemon, before},
		{sourceHost, before},
		{targetHost, before},
		{sourceLink, before},
		{failure, after},
		{sourceDaemon, after},
		{targetDaemon, after},
		{sourceHost, after},
		{targetHost, after},
		{leaderHost, after},
		{targetLink, after},
		{sourceDaemon, stop{Step: "copy", Phase: operation.AfterUndo}},
	} {
		cases = append(cases, moveCase{"live", c.stop, c.deed})
	}
	return append(cases, moveCase{"cold", before, sourceDaemon}, moveCase{"cold", before, sourceHost}, moveCase{"cold", after, targetHost}, moveCase{"stopped", before, targetDaemon})
}

// A move is stopped in every step, and something is done to it, or to a host: the VE runs once, where its record says, and
// nothing of it is left elsewhere.
func TestMoveSurvivesEveryFault(t *testing.T) {
	w := newWorld(t)
	w.importImage()
	w.done(w.clients["h1"].Launch(t.Context(), api.LaunchRequest{Name: "c1", Image: "counter", Restart: api.RestartAlways}))
	for _, to := range []string{"h2", "h3", "h1"} { // all have the image then
		w.done(w.clients["h1"].Move(t.Context(), "c1", api.MoveRequest{To: to, Mode: api.Live}))
		for _, h := range w.hosts {
			if h != to {
				w.without[h] = w.traces(h)
			}
		}
	}
	for _, c := range chosen() {
		t.Run(c.String(), func(t *testing.T) {
			w := *w
			w.T = t
			defer func() {
				if t.Failed() {
					w.mend()
				}
			}()
			w.try(c)
		})
	}
	v := w.settled(moveCase{how: "live"})
	w.done(w.clients["h1"].Move(t.Context(), "c1", api.MoveRequest{To: w.other(v.Host)})) // and it still can
}

// try does one case, and checks what comes of it.
func (w *world) try(c moveCase) {
	w.Helper()
	v := w.settled(c)
	from, to := v.Host, w.hosts[0]
	for i, h := range w.hosts {
		if h == from {
			to = w.hosts[(i+1)%len(w.hosts)]
		}
	}
	at := from
	if c.entered() {
		at = to
	}
	before := w.counters()
	w.clearStops()
	if c.undo() {
		w.setStops(at, stop{Step: "copy", Phase: operation.AfterDo, Fail: true}, c.stop)
	} else {
		w.setStops(at, c.stop)
	}
	began := time.Now()
	op, err := w.clients[w.other(from, to)].Move(w.Context(), "c1", c.request(to))
	must(w, err)
	leader := w.awaitStop(at, op.ID)
	w.Logf("%s to %s, the store's leader is %s; stopped after %v", from, to, leader, time.Since(began))
	if n := running(w.counters()); len(n) > 1 {
		w.Errorf("at the stop, it runs more than once: %v", n)
	}
	began = time.Now()
	killed := w.do(c, op.ID, at, from, to, leader)
	end := w.end(op.ID)
	w.Logf("%s %v after: %+v", end.State, time.Since(began), end.Error)
	if killed != "" && !slices.Contains(w.running(), killed) {
		w.wake(killed)
	}
	w.check(c, end, before, killed, from, to)
	w.Logf("all as it must be %v after", time.Since(began))
}

func (c moveCase) request(to string) api.MoveRequest {
	if c.how == "stopped" {
		return api.MoveRequest{To: to, Mode: api.Cold}
	}
	return api.MoveRequest{To: to, Mode: api.MoveMode(c.how)}
}

// settled brings the VE where the case begins. Hosts that the case before has cut off, or killed, are heard of again.
func (w *world) settled(c moveCase) (v api.VE) {
	w.Helper()
	for _, by := range w.hosts { // each takes itself for ready
		w.eventually("all hosts are ready", func() error {
			ctx, cancel := context.WithTimeout(w.Context(), 3*time.Second)
			defer cancel()
			hosts, err := w.clients[by].Hosts(ctx)
			for _, h := range hosts {
				if h.State != api.HostReady {
					err = fmt.Errorf("host %s is %s, by host %s", h.Name, h.State, by)
				}
			}
			return err
		})
	}
	want := api.Running
	if c.how == "stopped" {
		want = api.Stopped
	}
	v, err := w.record()
	must(w, err)
	switch {
	case v.State == want:
	case want == api.Stopped:
		w.done(w.clients[v.Host].Stop(w.Context(), "c1", api.StopRequest{Force: true}))
	default:
		w.done(w.clients[v.Host].Start(w.Context(), "c1"))
	}
	return v
}

// do does the deed. killed is the host that died by it; it is up again when only it can go on.
func (w *world) do(c moveCase, op, at, from, to, leader string) (killed string) {
	w.Helper()
	kill := func(host string) string {
		must(w, w.lab.Kill(w.Context(), host))
		if host == at { // only it can go on
			w.wake(host)
			return host
		}
		w.say(at, "go")
		if w.endsWithout(op, host) {
			w.alive()
		} else { // it died just after it had got the VE
			w.wake(host)
		}
		return host
	}
	cut := func(host string) {
		must(w, w.lab.Cut(w.Context(), host))
		w.say(at, "go")
		w.pause(op)
		must(w, w.lab.Heal(w.Context(), host))
	}
	daemon := func(host string) {
		w.killDaemon(host)
		if host != at {
			w.say(at, "go")
		}
	}
	switch c.deed {
	case nothing:
		w.say(at, "go")
	case failure:
		w.say(at, "fail")
	case cancel:
		err := w.clients[from].CancelOperation(w.Context(), op)
		if past := api.KindOf(err) == api.Precondition; past != c.entered() || err != nil && !past {
			w.Errorf("cancel: %v", err)
		}
		w.say(at, "go")
	case sourceDaemon:
		daemon(from)
	case targetDaemon:
		daemon(to)
	case sourceHost:
		return kill(from)
	case targetHost:
		return kill(to)
	case leaderHost:
		return kill(leader)
	case sourceLink:
		cut(from)
	case targetLink:
		cut(to)
	case cutAfter:
		w.say(at, "go")
		cut(from)
	case killAfter:
		w.say(at, "go")
		must(w, w.lab.Kill(w.Context(), from))
		w.wake(from)
		return from
	}
	return ""
}

// endsWithout waits for the operation's end while a host is dead; false: it has become that host's.
func (w *world) endsWithout(id, dead string) (ended bool) {
	w.Helper()
	w.eventually("operation "+id+" ends without "+dead, func() error {
		o, err := w.operation(id)
		if ended = o.State.Final(); err == nil && !ended && o.Host != dead {
			err = fmt.Errorf("it is %s, step %s on %s: %+v", o.State, o.Step, o.Host, o.Error)
		}
		return err
	})
	return ended
}

// alive checks that the VE goes on while a host is dead: with one that never comes back, too.
func (w *world) alive() {
	w.Helper()
	up := w.running()
	w.eventually("the VE runs while a host is dead", func() error {
		v, err := w.record()
		if err != nil || v.State != api.Running {
			return err
		}
		for _, h := range up {
			if h != v.Host {
				continue
			}
			for _, c := range w.counters() {
				if c.host == h && !c.still {
					return nil
				}
			}
			return fmt.Errorf("it does not run on %s", h)
		}
		return fmt.Errorf("it is on %s, which is dead", v.Host)
	})
}

// pause lets a cut last until the operation has ended, or for longer than a session lasts without a word.
func (w *world) pause(op string) {
	w.Helper()
	const cutFor = 8 * time.Second
	for end := time.Now().Add(cutFor); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if o, err := w.operation(op); err == nil && o.State.Final() {
			return
		}
	}
}

// wake starts a dead host, and waits until its daemon answers.
func (w *world) wake(host string) {
	w.Helper()
	must(w, w.lab.Start(w.Context(), host, func(string, ...any) {}))
}

// check looks at what is there in the end.
func (w *world) check(c moveCase, end api.Operation, before []counter, killed, from, to string) {
	w.Helper()
	done := end.State == api.OperationDone
	switch {
	case c.entered() && !done, c.deed == nothing && !c.undo() && !done:
		w.Errorf("the move ended as %s: %+v", end.State, end.Error)
	case c.deed == cancel && !c.entered() && end.State != api.OperationCancelled:
		w.Errorf("the move was cancelled, and ended as %s: %+v", end.State, end.Error)
	case !c.entered() && done && (c.undo() || c.deed == failure || c.deed == sourceDaemon || c.deed == sourceHost):
		w.Errorf("the move ended as %s", end.State)
	}
	where := from
	if done {
		where = to
	}
	want := api.Running
	if c.how == "stopped" {
		want = api.Stopped
	}
	var now []counter
	w.eventually("the VE runs once, where its record says, and nothing of it is left elsewhere", func() error {
		v, err := w.record()
		if err != nil {
			return err
		}
		if v.Host != where || v.State != want || v.MovingTo != "" {
			return fmt.Errorf("its record: on %q, moving to %q, %s (%s); want it %s on %q", v.Host, v.MovingTo, v.State, v.Reason, want, where)
		}
		if len(w.running()) < len(w.hosts) {
			return fmt.Errorf("hosts that run: %v", w.running())
		}
		for _, h := range w.hosts {
			if h != where && w.traces(h) != w.without[h] {
				return fmt.Errorf("left on %s:\n%s\nwithout a VE:\n%s", h, w.traces(h), w.without[h])
			}
		}
		now = w.counters()
		if want == api.Stopped {
			if len(now) > 0 {
				return fmt.Errorf("it is stopped, and runs: %v", now)
			}
			return nil
		}
		if len(now) != 1 || now[0].host != where {
			return fmt.Errorf("it runs: %v", now)
		}
		if later := w.counters(); len(later) != 1 || later[0].me == now[0].me && later[0].n == now[0].n {
			return fmt.Errorf("it stands still: %v, later %v", now, later)
		}
		return nil
	})
	if c.keeps(killed, where) && (len(before) != 1 || now[0].me != before[0].me || now[0].n < before[0].n) {
		w.Errorf("its memory was lost: it counted %v, now %v", before, now)
	}
	if v, err := w.record(); err == nil {
		var errs strings.Builder
		ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
		defer cancel()
		if code, err := w.clients[w.other(v.Host)].Exec(ctx, "c1", api.ExecRequest{Command: []string{"/bin/sh", "-c", "exit 7"}}, client.Streams{Stdout: &errs}); want == api.Running && (err != nil || code != 7) {
			w.Errorf("exec in the VE: exit %d, %v %s", code, err, errs.String())
		}
	}
}

// keeps says whether the VE must have its memory still.
func (c moveCase) keeps(killed, where string) bool {
	return (c.how == "live" || c.how == "warm") && killed != where
}

// running are those that don't stand still.
func running(list []counter) (run []counter) {
	for _, c := range list {
		if !c.still {
			run = append(run, c)
		}
	}
	return run
}

// mend makes the world whole again after a case that failed.
func (w *world) mend() {
	w.clearStops()
	list, err := w.lab.List()
	if err != nil {
		return
	}
	for _, h := range list {
		w.Logf("the end of the log of %s:\n%s", h.Name, tail(h.Log))
		if h.State == lab.HostStopped {
			w.wake(h.Name)
		}
		_ = w.lab.Heal(w.Context(), h.Name)
	}
}

func tail(path string) string {
	text, _ := os.ReadFile(path)
	return string(text[max(0, len(text)-6000):])
}
