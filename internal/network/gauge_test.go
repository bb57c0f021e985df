package network

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

const tick = 5 * time.Millisecond

// asked is a gauge after n requests that were answered after lag.
func asked(n int, lag time.Duration) (g *gauge, at time.Duration) {
	g = newGauge(tick)
	for i := range n {
		at = time.Duration(i) * tick
		g.request(uint64(i), at)
		g.answer(uint64(i), at+lag)
	}
	return g, at
}

func TestGauge(t *testing.T) {
	began := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		then func(g *gauge, at time.Duration) (now time.Duration)
		want time.Duration
	}{
		"always there": {func(_ *gauge, at time.Duration) time.Duration { return at }, tick},
		"requests lost": {func(g *gauge, at time.Duration) time.Duration {
			for i := range uint64(10) {
				at += tick
				g.request(100+i, at)
			}
			g.answer(109, at+time.Millisecond)
			return at
		}, 10 * tick},
		"requests answered late, all at once": {func(g *gauge, at time.Duration) time.Duration {
			for i := range uint64(10) {
				at += tick
				g.request(100+i, at)
			}
			for i := range uint64(10) {
				g.answer(100+i, at+time.Millisecond)
			}
			return at
		}, 10 * tick},
		"nothing was asked": {func(g *gauge, at time.Duration) time.Duration {
			at += 20 * tick
			g.request(100, at)
			g.answer(100, at+time.Millisecond)
			return at
		}, tick + time.Millisecond},
		"not there yet": {func(g *gauge, at time.Duration) time.Duration {
			for i := range uint64(10) {
				at += tick
				g.request(100+i, at)
			}
			return at
		}, 10*tick - time.Millisecond},
		"answered twice": {func(g *gauge, at time.Duration) time.Duration {
			g.answer(9, at+40*tick)
			return at
		}, tick},
	} {
		g, at := asked(10, time.Millisecond)
		seen := g.observed(tc.then(g, at), began)
		if seen.Longest != tc.want || seen.To.Sub(seen.From) != tc.want || !seen.Answering {
			t.Errorf("%s: got %+v, want %v", name, seen, tc.want)
		}
	}
	silent := newGauge(tick)
	silent.request(1, tick)
	if seen := silent.observed(time.Hour, began); seen.Answering || seen.Longest != 0 || seen.Sent != 1 {
		t.Errorf("never there: got %+v", seen)
	}
}

// Whatever else goes on, a time in which there was no answer is found, to a tick.
func TestGaugeFindsTheGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := newGauge(tick)
		down := rapid.IntRange(20, 60).Draw(t, "down")
		gap := rapid.IntRange(10, 200).Draw(t, "gap")
		queued := rapid.Bool().Draw(t, "queued")
		lag := time.Duration(rapid.IntRange(1, 4).Draw(t, "lag")) * time.Millisecond
		for i := range down + gap + 30 {
			at := time.Duration(i) * tick
			g.request(uint64(i), at)
			if i == down+gap && queued {
				for old := down; old < i; old++ {
					g.answer(uint64(old), at)
				}
			}
			if i < down || i >= down+gap {
				g.answer(uint64(i), at+lag)
			}
		}
		want := time.Duration(gap+1) * tick
		got := g.observed(time.Duration(down+gap+30)*tick, time.Now()).Longest
		if got < want-tick || got > want+tick {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}
