package modeltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"polder/internal/model"
)

func testLife(t *testing.T, w *world) {
	w.must(t, "prepare again", w.m.Prepare(w.ctx(t), w.ve))
	w.gone(t)
	p := w.start(t)
	again, err := w.m.Start(w.ctx(t), w.ve)
	w.must(t, "start again", err)
	if again.PID != p.PID {
		t.Fatalf("starting a running VE gave pid %d instead of %d", again.PID, p.PID)
	}
	w.must(t, "stop", w.m.Stop(w.ctx(t), w.ve, w.Grace))
	for _, process := range []model.Process{p, again} {
		if exit := w.exit(t, process); exit.Crashed {
			t.Errorf("an orderly stop is told as a crash: %s", exit.Reason)
		}
	}
	if alive(p.PID) {
		t.Errorf("pid %d runs on after stop", p.PID)
	}
	w.must(t, "stop again", w.m.Stop(w.ctx(t), w.ve, w.Grace))
	w.gone(t)
}

func testStartAgain(t *testing.T, w *world) {
	first := w.start(t)
	w.must(t, "stop", w.m.Stop(w.ctx(t), w.ve, 0))
	w.exit(t, first)
	second := w.start(t)
	if second.PID == first.PID {
		t.Errorf("the second start gave the pid of the first: %d", first.PID)
	}
}

func testAdopt(t *testing.T, w *world) {
	p := w.start(t)
	adopted, paused, ok := w.adopt(t)
	if !ok || paused || adopted.PID != p.PID {
		t.Fatalf("adopt = pid %d, paused %v, ok %v; want the running pid %d", adopted.PID, paused, ok, p.PID)
	}
	if !alive(p.PID) {
		t.Fatal("adopt has harmed the VE")
	}
	kill(t, p.PID)
	if exit := w.exit(t, adopted); !exit.Crashed || exit.Reason == "" {
		t.Errorf("the daemon that adopted the VE was told %+v", exit)
	}
	w.gone(t)
}

func testPause(t *testing.T, w *world) {
	p := w.start(t)
	for range 2 {
		w.must(t, "pause", w.m.Pause(w.ctx(t), w.ve))
		if a, paused, ok := w.adopt(t); !ok || !paused || a.PID != p.PID {
			t.Fatalf("adopt of a paused VE = pid %d, paused %v, ok %v", a.PID, paused, ok)
		}
	}
	for range 2 {
		w.must(t, "resume", w.m.Resume(w.ctx(t), w.ve))
		if a, paused, ok := w.adopt(t); !ok || paused || a.PID != p.PID {
			t.Fatalf("adopt of a resumed VE = pid %d, paused %v, ok %v", a.PID, paused, ok)
		}
	}
	select {
	case exit := <-p.Exited:
		t.Fatalf("pause and resume ended the VE: %+v", exit)
	default:
	}
}

func testCrash(t *testing.T, w *world) {
	p := w.start(t)
	kill(t, p.PID)
	if exit := w.exit(t, p); !exit.Crashed || exit.Reason == "" {
		t.Errorf("a killed VE ended with %+v", exit)
	}
	w.gone(t)
	w.start(t) // without a stop between: the restart policy does that
	w.must(t, "stop", w.m.Stop(w.ctx(t), w.ve, 0))
}

func testStopAtOnce(t *testing.T, w *world) {
	p := w.start(t)
	w.must(t, "stop", w.m.Stop(w.ctx(t), w.ve, 0))
	if alive(p.PID) {
		t.Errorf("pid %d runs on", p.PID)
	}
	w.exit(t, p)
}

func testStopPaused(t *testing.T, w *world) {
	p := w.start(t)
	w.must(t, "pause", w.m.Pause(w.ctx(t), w.ve))
	w.must(t, "stop", w.m.Stop(w.ctx(t), w.ve, w.Grace))
	w.exit(t, p)
	w.gone(t)
}

func testNothingToUndo(t *testing.T, w *world) {
	w.must(t, "stop what never ran", w.m.Stop(w.ctx(t), w.ve, w.Grace))
	w.must(t, "remove", w.m.Remove(w.ctx(t), w.ve))
	w.must(t, "stop what was removed", w.m.Stop(w.ctx(t), w.ve, 0))
	w.gone(t)
	w.must(t, "prepare", w.m.Prepare(w.ctx(t), w.ve))
}

// A start whose caller gave up either ran or did not; the next call finishes or undoes it.
func testStartCutOff(t *testing.T, w *world) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.m.Start(ctx, w.ve); err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("start with a cancelled context: %v", err)
	}
	w.must(t, "stop", w.m.Stop(w.ctx(t), w.ve, 0))
	w.gone(t)
	w.start(t)
}

// processState is the state letter in /proc/PID/stat.
func processState(pid int) (byte, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	if !ok || len(rest) == 0 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, stat)
	}
	return rest[0], nil
}
