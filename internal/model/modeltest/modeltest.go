// Package modeltest is the conformance suite that every model passes: the promises of model.Model, model.Execer and
// model.Consoler, tried out on real VEs. It knows nothing of how a model works; a Harness gives it the model, VEs to run
// and a way to see what they leave behind. Its tests run one after the other.
package modeltest

import (
	"context"
	"os"
	"testing"
	"time"

	"polder/api"
	"polder/internal/model"
)

// Harness is what a model's test brings along.
type Harness struct {
	// New gives the model under test, as a daemon makes it when it starts: a second one shares no memory with the first.
	New func(t *testing.T) model.Model
	// Spec gives a new VE of its own with a fresh volume, whose system runs until it is halted. The harness removes the
	// volume at the end of the test; the suite calls Remove.
	Spec func(t *testing.T) model.Spec
	// Ready blocks until the VE that has been started can run commands; nil: it can at once.
	Ready func(ctx context.Context, m model.Model, ve model.Spec) error
	// Leftovers names what a VE that is stopped and removed still has on this host (processes, mounts, links, cgroups);
	// it should be empty.
	Leftovers func(t *testing.T, ve model.Spec) []string
	// Target gives the other end for a move of a VE; nil for a model that is no model.Mover.
	Target func(t *testing.T, ve model.Spec) Target
	// Grace that an orderly stop needs at most.
	Grace time.Duration
	// Patience bounds every single wait.
	Patience time.Duration
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"Life", testLife},
		{"StartAgain", testStartAgain},
		{"Adopt", testAdopt},
		{"Pause", testPause},
		{"Crash", testCrash},
		{"StopAtOnce", testStopAtOnce},
		{"StopPaused", testStopPaused},
		{"NothingToUndo", testNothingToUndo},
		{"StartCutOff", testStartCutOff},
		{"Capabilities", testCapabilities},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newWorld(t, h)) })
	}
	if _, ok := h.New(t).(model.Execer); ok {
		t.Run("Exec", func(t *testing.T) { testExec(t, newWorld(t, h)) })
	}
	if _, ok := h.New(t).(model.Consoler); ok {
		t.Run("Console", func(t *testing.T) { testConsole(t, newWorld(t, h)) })
	}
	if h.Target != nil {
		t.Run("Move", func(t *testing.T) { testMove(t, h) })
	}
}

// world is one VE and the model that runs it.
type world struct {
	Harness
	m  model.Model
	ve model.Spec
}

// newWorld prepares a VE, and at the end of the test stops and removes it and looks for what it left.
func newWorld(t *testing.T, h Harness) *world {
	t.Helper()
	w := &world{Harness: h, m: h.New(t), ve: h.Spec(t)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.Patience)
		defer cancel()
		w.must(t, "stop", w.m.Stop(ctx, w.ve, 0))
		w.must(t, "remove", w.m.Remove(ctx, w.ve))
		w.must(t, "remove again", w.m.Remove(ctx, w.ve))
		if left := w.Leftovers(t, w.ve); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
	w.must(t, "prepare", w.m.Prepare(w.ctx(t), w.ve))
	return w
}

func (w *world) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), w.Patience)
	t.Cleanup(cancel)
	return ctx
}

func (w *world) must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// start starts the VE and waits until it can run commands.
func (w *world) start(t *testing.T) model.Process {
	t.Helper()
	p, err := w.m.Start(w.ctx(t), w.ve)
	w.must(t, "start", err)
	if p.PID <= 1 || p.Exited == nil {
		t.Fatalf("start gave the process %+v", p)
	}
	if !alive(p.PID) {
		t.Fatalf("start gave pid %d, which does not run", p.PID)
	}
	if w.Ready != nil {
		w.must(t, "wait until it is ready", w.Ready(w.ctx(t), w.m, w.ve))
	}
	return p
}

// exit waits for the process's end.
func (w *world) exit(t *testing.T, p model.Process) model.Exit {
	t.Helper()
	select {
	case exit, ok := <-p.Exited:
		if !ok {
			t.Fatal("Exited was closed before it told how the VE ended")
		}
		if _, more := <-p.Exited; more {
			t.Fatal("Exited told twice how the VE ended")
		}
		return exit
	case <-time.After(w.Patience):
		t.Fatalf("pid %d has not ended after %s", p.PID, w.Patience)
		return model.Exit{}
	}
}

// adopt asks a model that has just been made whether the VE runs.
func (w *world) adopt(t *testing.T) (p model.Process, paused, ok bool) {
	t.Helper()
	p, paused, ok, err := w.New(t).Adopt(w.ctx(t), w.ve)
	w.must(t, "adopt", err)
	return p, paused, ok
}

func (w *world) gone(t *testing.T) {
	t.Helper()
	if p, _, ok := w.adopt(t); ok {
		t.Fatalf("adopt found pid %d of a VE that does not run", p.PID)
	}
}

// alive says whether a process is there and not a zombie.
func alive(pid int) bool {
	state, err := processState(pid)
	return err == nil && state != 'Z' && state != 'X'
}

func testCapabilities(t *testing.T, w *world) {
	all := w.m.Capabilities(w.ctx(t))
	if len(all) == 0 {
		t.Fatal("the model says nothing about what it can do")
	}
	for _, c := range all {
		if c.Name == "" || c.Detail == "" {
			t.Errorf("capability %+v has no name or no detail", c)
		}
		if c.Level != api.OK && c.Level != api.Limited && c.Level != api.Missing {
			t.Errorf("capability %s has the level %q", c.Name, c.Level)
		}
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}
