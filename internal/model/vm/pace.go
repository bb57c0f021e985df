package vm

import (
	"fmt"
	"time"

	"polder/api"
)

const (
	// firstLimit is what is tried first: a VE that rests need not stand still for longer, whatever it may.
	firstLimit = 10 * time.Millisecond
	// reserve is what the cut-over takes beside the last of the memory: devices, disk, gates, the record, the way there.
	reserve = 120 * time.Millisecond
	// mostRounds is when a move that does not converge is given up; the VE has been slowed down to a hundredth long before.
	mostRounds = 200
	// gainful is how many times smaller one more round has to make the last set to be worth its time, and patientRounds how many may be
	// spent on that.
	gainful       = 4
	patientRounds = 6
	// telling is how much a round has to send to tell how fast the link is.
	telling = 4 << 20
)

// pace decides for how long QEMU may let the VE stand still: as little as it can where one more round makes that much less, as much as
// it may where it doesn't. Beyond that the VE is slowed down (auto-converge), by QEMU itself.
//
// QEMU would take the last tenth of a second for the link's speed, in which it may have sent next to nothing, and go on with
// rounds of nothing. So it is told what whole rounds have seen.
type pace struct {
	limit, most time.Duration
	bandwidth   float64 // bytes per second, the best of any round; 0: not known yet
	round       int
	began       time.Time // of the round
	sent        int64     // when it began
}

// order is what QEMU is to be told anew; nil: nothing.
type order = map[string]any

func newPace(downtime time.Duration) *pace {
	most := max(downtime-reserve, downtime/2)
	return &pace{limit: min(firstLimit, most), most: most}
}

// next looks at the migration as it is at a moment.
func (p *pace) next(got migration, now time.Time) (order, error) {
	if got.RAM.Rounds > mostRounds {
		return nil, api.Errorf(api.Precondition,
			"its memory changes faster (%s/s) than it can be sent: allow it to stand still for longer, or more bandwidth", api.Bytes(got.dirty()))
	}
	if got.RAM.Rounds <= p.round {
		return nil, nil
	}
	change := order{}
	if sent, took := got.RAM.Transferred-p.sent, now.Sub(p.began).Seconds(); p.round > 0 && sent >= telling && took > 0 {
		if speed := float64(sent) / took; speed > p.bandwidth {
			p.bandwidth = speed
			change["avail-switchover-bandwidth"] = int64(speed)
		}
	}
	p.round, p.began, p.sent = got.RAM.Rounds, now, got.RAM.Transferred
	gains := float64(got.dirty())*gainful <= p.bandwidth
	if p.limit != p.most && p.round > 1 && (!gains || p.round > patientRounds) {
		p.limit = p.most
		change["downtime-limit"] = p.limit.Milliseconds()
	}
	if len(change) == 0 {
		return nil, nil
	}
	return change, nil
}

// way says how it went.
func (p *pace) way(got migration, follows bool) string {
	text := fmt.Sprintf("pre-copy, %d rounds", got.RAM.Rounds)
	if follows {
		text = fmt.Sprintf("post-copy after %d rounds, %s left to follow", got.RAM.Rounds, api.Bytes(got.RAM.Remaining))
	}
	if got.Throttle > 0 {
		text += fmt.Sprintf(", slowed down by %d %%", got.Throttle)
	}
	return text
}
