package modeltest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"polder/api"
	"polder/internal/model"
)

// Target is the other end of a VE's move: what would be another host, as far as the model can tell.
type Target struct {
	Model model.Mover
	Spec  model.Spec
	// Volume is what Receive is given: the VE's volume is a copy of the source's, or the same.
	Volume func(ctx context.Context) (model.Root, error)
}

// testMove runs what every model.Mover promises; a harness without Target has no moves to try.
func testMove(t *testing.T, h Harness) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *journey)
	}{
		{"Live", func(t *testing.T, j *journey) { testMoved(t, j, api.Live) }},
		{"Warm", func(t *testing.T, j *journey) { testMoved(t, j, api.Warm) }},
		{"Paused", testMovePaused},
		{"Kept", testMoveKept},
		{"KeptUntouched", testKeptUntouched},
		{"StreamCut", testMoveCut},
		{"NoVolume", testMoveNoVolume},
		{"StillFails", testMoveStillFails},
		{"Cancelled", testMoveCancelled},
		{"Checks", testMoveChecks},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newJourney(t, h)) })
	}
}

// journey is a running VE and where it could go.
type journey struct {
	*world
	to    Target
	first model.Process
}

func newJourney(t *testing.T, h Harness) *journey {
	t.Helper()
	j := &journey{}
	// Last of all: what the two ends share is the source's until that is removed.
	t.Cleanup(func() {
		if left := h.Leftovers(t, j.to.Spec); len(left) > 0 {
			t.Errorf("left behind at the target: %q", left)
		}
	})
	w := newWorld(t, h)
	j.world, j.to, j.first = w, h.Target(t, w.ve), w.start(t)
	m := j.to.Model.(model.Model)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.Patience)
		defer cancel()
		w.must(t, "stop at the target", m.Stop(ctx, j.to.Spec, 0))
		w.must(t, "remove at the target", m.Remove(ctx, j.to.Spec))
	})
	w.must(t, "prepare at the target", m.Prepare(w.ctx(t), j.to.Spec))
	return j
}

func (j *journey) mover() model.Mover { return j.m.(model.Mover) }

// ends are how the two ends of a move ended.
type ends struct {
	sent           model.Sent
	send, received error
}

// travel runs both ends up to where the VE stands still twice, or not. s and r may be changed before.
func (j *journey) travel(ctx context.Context, cut int64, o model.SendOptions, r model.ReceiveOptions) ends {
	here, there := newSessions(cut)
	defer here.close()
	if o.Still == nil {
		o.Still = func(context.Context) error { return nil }
	}
	if o.Mode == "" {
		o.Mode = api.Live
	}
	if r.Volume == nil {
		r.Volume = j.to.Volume
	}
	var e ends
	var both sync.WaitGroup
	both.Go(func() {
		e.received = j.to.Model.Receive(ctx, j.to.Spec, there, r)
		if e.received != nil {
			there.close() // as its host would: the source must not wait for ever
		}
	})
	e.sent, e.send = j.mover().Send(ctx, j.ve, here, o)
	if e.send != nil {
		here.close()
	}
	both.Wait()
	return e
}

// stays lets the VE go on at the source with a new daemon's model, and checks that it does.
func (j *journey) stays(t *testing.T) {
	t.Helper()
	for range 2 {
		p, err := j.New(t).(model.Mover).Keep(j.ctx(t), j.ve)
		j.must(t, "keep", err)
		if p.PID != j.first.PID {
			t.Fatalf("keep gave pid %d; the VE's is %d", p.PID, j.first.PID)
		}
	}
	a, paused, ok := j.adopt(t)
	if !ok || paused || a.PID != j.first.PID {
		t.Fatalf("adopt after keep = pid %d, paused %v, ok %v; want the running pid %d", a.PID, paused, ok, j.first.PID)
	}
	j.ready(t)
	select {
	case exit := <-j.first.Exited:
		t.Fatalf("the VE ended: %+v", exit)
	default:
	}
}

// ready waits until the VE at the source answers.
func (j *journey) ready(t *testing.T) {
	t.Helper()
	if j.Ready != nil {
		j.must(t, "wait until it answers", j.Ready(j.ctx(t), j.m, j.ve))
	}
}

// nothing checks that no VE runs at the target.
func (j *journey) nothing(t *testing.T) {
	t.Helper()
	m := j.to.Model.(model.Model)
	j.must(t, "stop at the target", m.Stop(j.ctx(t), j.to.Spec, 0))
	if p, _, ok, err := m.Adopt(j.ctx(t), j.to.Spec); err != nil || ok {
		t.Fatalf("adopt at the target = pid %d, ok %v, %v", p.PID, ok, err)
	}
}

func testMoved(t *testing.T, j *journey, mode api.MoveMode) {
	still := 0
	before := time.Now()
	e := j.travel(j.ctx(t), 0, model.SendOptions{Mode: mode, Still: func(context.Context) error { still++; return nil }}, model.ReceiveOptions{})
	j.must(t, "send", e.send)
	j.must(t, "receive", e.received)
	if still > 1 || e.sent.Bytes <= 0 || e.sent.Way == "" || e.sent.Still.Before(before) || e.sent.Still.After(time.Now()) {
		t.Errorf("sent = %+v, Still was called %d times", e.sent, still)
	}
	j.must(t, "stop at the source", j.m.Stop(j.ctx(t), j.ve, 0))
	j.exit(t, j.first)
	j.gone(t)
	arrived(t, j, false)
}

// arrived enters the VE at the target, twice, and checks that all of a model works on it there.
func arrived(t *testing.T, j *journey, paused bool) {
	t.Helper()
	var p model.Process
	for range 2 {
		again, err := j.to.Model.Enter(j.ctx(t), j.to.Spec)
		j.must(t, "enter", err)
		if p.PID != 0 && again.PID != p.PID || !alive(again.PID) {
			t.Fatalf("enter gave pid %d after %d", again.PID, p.PID)
		}
		p = again
	}
	m := j.to.Model.(model.Model)
	a, isPaused, ok, err := m.Adopt(j.ctx(t), j.to.Spec)
	if err != nil || !ok || isPaused != paused || a.PID != p.PID {
		t.Fatalf("adopt at the target = pid %d, paused %v, ok %v, %v; want pid %d, paused %v", a.PID, isPaused, ok, err, p.PID, paused)
	}
	if paused {
		j.must(t, "resume at the target", m.Resume(j.ctx(t), j.to.Spec))
	}
	if j.Ready != nil {
		j.must(t, "wait until it answers at the target", j.Ready(j.ctx(t), m, j.to.Spec))
	}
	j.must(t, "pause at the target", m.Pause(j.ctx(t), j.to.Spec))
	j.must(t, "resume at the target", m.Resume(j.ctx(t), j.to.Spec))
	j.must(t, "stop at the target", m.Stop(j.ctx(t), j.to.Spec, j.Grace))
	if exit := j.exit(t, p); exit.Crashed {
		t.Errorf("an orderly stop at the target is told as a crash: %s", exit.Reason)
	}
}

func testMovePaused(t *testing.T, j *journey) {
	j.must(t, "pause", j.m.Pause(j.ctx(t), j.ve))
	e := j.travel(j.ctx(t), 0, model.SendOptions{Mode: api.Warm}, model.ReceiveOptions{})
	j.must(t, "send", e.send)
	j.must(t, "receive", e.received)
	j.must(t, "stop at the source", j.m.Stop(j.ctx(t), j.ve, 0))
	arrived(t, j, true)
}

// A VE that was sent whole can still stay.
func testMoveKept(t *testing.T, j *journey) {
	e := j.travel(j.ctx(t), 0, model.SendOptions{}, model.ReceiveOptions{})
	j.must(t, "send", e.send)
	j.must(t, "receive", e.received)
	if _, paused, ok := j.adopt(t); !ok || paused {
		t.Errorf("adopt of a VE that stands still for a move: paused %v, ok %v; nobody has paused it", paused, ok)
	}
	j.nothing(t)
	j.stays(t)
}

func testKeptUntouched(t *testing.T, j *journey) { j.stays(t) }

// A link that breaks, at any place.
func testMoveCut(t *testing.T, j *journey) {
	whole := j.travel(j.ctx(t), 0, model.SendOptions{}, model.ReceiveOptions{})
	j.must(t, "send", errors.Join(whole.send, whole.received))
	j.nothing(t)
	j.stays(t)
	for _, part := range []int64{1, 100, 2000, int64(whole.sent.Bytes) / 2, int64(whole.sent.Bytes) * 3 / 4} {
		e := j.travel(j.ctx(t), part, model.SendOptions{}, model.ReceiveOptions{})
		if e.send == nil || e.received == nil {
			t.Fatalf("cut after %d bytes: send: %v, receive: %v; want errors", part, e.send, e.received)
		}
		j.nothing(t)
		j.stays(t)
	}
}

func testMoveNoVolume(t *testing.T, j *journey) {
	missing := api.Errorf(api.Exhausted, "no room")
	e := j.travel(j.ctx(t), 0, model.SendOptions{}, model.ReceiveOptions{Volume: func(context.Context) (model.Root, error) { return model.Root{}, missing }})
	if e.send == nil || api.KindOf(e.received) != api.Exhausted {
		t.Fatalf("send: %v, receive: %v; want the volume's error", e.send, e.received)
	}
	j.nothing(t)
	j.stays(t)
}

func testMoveStillFails(t *testing.T, j *journey) {
	called := false
	e := j.travel(j.ctx(t), 0, model.SendOptions{Still: func(context.Context) error {
		called = true
		return api.Errorf(api.Unavailable, "the volume's last round failed")
	}}, model.ReceiveOptions{})
	if called && (e.send == nil || e.received == nil) {
		t.Fatalf("send: %v, receive: %v; want errors", e.send, e.received)
	}
	j.nothing(t)
	j.stays(t)
}

func testMoveCancelled(t *testing.T, j *journey) {
	ctx, cancel := context.WithCancel(j.ctx(t))
	e := j.travel(ctx, 0, model.SendOptions{}, model.ReceiveOptions{Volume: func(ctx context.Context) (model.Root, error) {
		cancel()
		<-ctx.Done()
		return model.Root{}, ctx.Err()
	}})
	cancel()
	if api.KindOf(e.send) != api.Cancelled || e.received == nil {
		t.Errorf("send: %v, receive: %v; want cancelled", e.send, e.received)
	}
	j.nothing(t)
	j.stays(t)
}

func testMoveChecks(t *testing.T, j *journey) {
	blockers, err := j.mover().Blockers(j.ctx(t), j.ve)
	j.must(t, "blockers", err)
	if len(blockers) > 0 {
		t.Errorf("blockers: %+v", blockers)
	}
	needs, err := j.mover().Needs(j.ctx(t), j.ve)
	j.must(t, "needs", err)
	unfit, err := j.to.Model.Fits(j.ctx(t), needs)
	j.must(t, "fits", err)
	if len(unfit) > 0 {
		t.Errorf("it does not fit where it runs: %+v", unfit)
	}
	if _, err := j.to.Model.Fits(j.ctx(t), []byte("{")); err == nil {
		t.Error("fits takes anything")
	}
	load, err := j.mover().Load(j.ctx(t), j.ve, 200*time.Millisecond)
	j.must(t, "load", err)
	if load.Memory <= 0 || load.Room < load.Memory || load.DirtyRate < -1 {
		t.Errorf("load = %+v", load)
	}
	j.stays(t)
}
