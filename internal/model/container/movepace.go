package container

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"polder/api"
)

// Rounds of copying ahead.
const (
	mostRounds = 16
	smallRound = 2 * api.MiB
)

// brakes are the shares of the time, in percent, for which a VE that writes faster than the link carries stands still, one after the other.
var brakes = []int{50, 75, 90, 96}

// pace decides after each round of copying ahead how to go on.
type pace struct {
	wanted time.Duration // that what is left takes at most

	rounds int
	speed  float64 // bytes in a second, of the first round, which sends everything
	before api.Bytes
	brake  int // percent
}

// next is told what the round that has ended has sent, which is about what the one after it will, and how long it took. Slower: the brake has changed.
func (p *pace) next(sent api.Bytes, took time.Duration) (again, slower bool) {
	p.rounds++
	if p.rounds == 1 {
		p.speed = float64(max(sent, 1)) / max(took.Seconds(), 1e-6)
		p.before = sent
		return sent > smallRound, false
	}
	left := time.Duration(float64(sent) / p.speed * float64(time.Second))
	shrinks := sent <= p.before/2
	p.before = sent
	switch {
	case sent <= smallRound || p.rounds >= mostRounds:
		return false, false
	case shrinks:
		return true, false
	case left <= p.wanted:
		return false, false
	}
	for _, brake := range brakes {
		if brake > p.brake {
			p.brake = brake
			return true, true
		}
	}
	return false, false
}

// String is the way that was gone, in words.
func (p *pace) String() string {
	text := "pre-copy, " + strconv.Itoa(p.rounds) + " rounds"
	if p.brake > 0 {
		text += fmt.Sprintf(", slowed down by %d %%", p.brake)
	}
	return text
}

// brakePeriod is short for who waits for the VE, and long beside what stopping its processes takes.
const brakePeriod = 50 * time.Millisecond

// brake slows a VE down: its processes stand still for a share of the time. That works where no controller limits their share of the processors
// too, and takes no part in what the VE is allowed otherwise. A VE that is left standing still by a daemon that was killed goes on with Keep.
type brake struct {
	group cgroup

	running sync.WaitGroup
	stop    chan struct{}
	err     error // of the last change; read after running
}

// press makes it stand still for so much of the time, in percent, from now on.
func (b *brake) press(percent int) {
	_ = b.release()
	b.stop = make(chan struct{})
	still := brakePeriod * time.Duration(percent) / 100
	b.running.Go(func() {
		for {
			for _, part := range []struct {
				freeze string
				d      time.Duration
			}{{"1", still}, {"0", brakePeriod - still}} {
				if b.err = b.group.set("cgroup.freeze", part.freeze); b.err != nil {
					return
				}
				select {
				case <-time.After(part.d):
				case <-b.stop:
					b.err = b.group.set("cgroup.freeze", "0")
					return
				}
			}
		}
	})
}

// release lets it run as before.
func (b *brake) release() error {
	if b.stop == nil {
		return nil
	}
	close(b.stop)
	b.running.Wait()
	b.stop = nil
	return b.err
}
