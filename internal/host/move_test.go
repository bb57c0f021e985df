package host

import (
	"testing"
	"time"
)

// How long a move took does not depend on how far the two hosts' clocks are apart.
func TestAMoveIsTimedByEachHostsOwnClock(t *testing.T) {
	source := time.Now()
	for _, skew := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
		target := source.Add(skew)
		m := move{Began: source, Still: source.Add(2 * time.Second)}
		m.clock(source.Add(3 * time.Second))
		m.Entered = target.Add(3 * time.Second)
		if still, total := m.spent(target.Add(3500 * time.Millisecond)); still != 1500*time.Millisecond || total != 3500*time.Millisecond {
			t.Errorf("clocks %v apart: still for %v, %v in all", skew, still, total)
		}
		stopped := move{Began: source}
		stopped.clock(source.Add(time.Second))
		stopped.Entered = target
		if still, total := stopped.spent(target); still != 0 || total != time.Second {
			t.Errorf("clocks %v apart: a VE that did not run stood still for %v, %v in all", skew, still, total)
		}
	}
}
