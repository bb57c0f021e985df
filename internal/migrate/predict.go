package migrate

import (
	"math"
	"time"

	"polder/api"
)

const (
	mostRounds = 30 // of a pre-copy
	// leastRound is what one more round takes however little there is to send: what is written meanwhile remains.
	leastRound = 50 * time.Millisecond
	// throttled is the share of the link that a slowed-down VE may write, and slowest what is left of its own pace at the least.
	throttled, slowest = 0.4, 0.01
	// guessedRate is what a VE is taken to write per second where that can't be measured.
	guessedRate = 20 * api.MiB
	// postCopySet is what a VM can't go on without: its devices, and which pages are to follow.
	postCopySet = 4 * api.MiB
	longest     = 10 * 365 * 24 * time.Hour
	largest     = 1 << 60
)

// Costs are what a move takes beside the transfer, as measured.
type Costs struct {
	SwitchOver time.Duration // outage of the smallest VE
	Process    time.Duration // each process adds
	Handling   api.Bytes     // memory that is taken and put back while the VE stands still, per second
	Whole      bool          // that is all of it, also what was sent before
	Prepare    time.Duration // before anything is sent
	Halt, Boot time.Duration // of a cold move
}

// CostsOf a model.
func CostsOf(m api.Model) Costs {
	if m == api.Container {
		return Costs{
			SwitchOver: 250 * time.Millisecond, Process: 4 * time.Millisecond, Handling: 600 * api.MiB, Whole: true, Prepare: 300 * time.Millisecond,
			Halt: 1500 * time.Millisecond, Boot: 1500 * time.Millisecond,
		}
	}
	return Costs{
		SwitchOver: 60 * time.Millisecond, Handling: 8 * api.GiB, Prepare: 700 * time.Millisecond,
		Halt: 5 * time.Second, Boot: 10 * time.Second,
	}
}

// settled fills in what was not given and cuts off what can't be.
func (f Facts) settled() Facts {
	if f.Mode == "" {
		f.Mode = api.Auto
	}
	if f.Costs == (Costs{}) {
		f.Costs = CostsOf(f.Model)
	}
	if f.Limit > 0 {
		f.Link.Bandwidth = min(f.Link.Bandwidth, f.Limit)
	}
	f.Link.Bandwidth = max(f.Link.Bandwidth, 1)
	f.Link.RTT = max(f.Link.RTT, 0)
	f.Costs.Handling = max(f.Costs.Handling, 1)
	f.Load.Memory = max(f.Load.Memory, 0)
	f.Load.Processes = max(f.Load.Processes, 0)
	f.Volume, f.VolumeLast = max(f.Volume, 0), max(f.VolumeLast, 0)
	f.MaxDowntime = max(f.MaxDowntime, 0)
	return f
}

// predict says what a mode would take; it only grows with what is to be carried, and shrinks with bandwidth.
func (f Facts) predict(mode api.MoveMode, way Way) Plan {
	p := Plan{Mode: mode, Way: way}
	memory, volume := float64(f.Load.Memory), float64(f.Volume)
	var still, sent float64 // bytes
	outage := seconds(f.Costs.SwitchOver) + float64(f.Load.Processes)*seconds(f.Costs.Process) + 4*seconds(f.Link.RTT)
	switch {
	case mode == api.Cold:
		outage = seconds(f.Costs.Halt) + seconds(f.Costs.Boot)
		still, sent = volume, volume
		memory = 0
	case mode == api.Warm:
		still, sent = memory+volume, memory+volume
	case way == PostCopy:
		p.Blockers = f.Blockers
		memory = min(memory, float64(postCopySet))
		still, sent = memory+float64(f.VolumeLast), float64(f.Load.Memory)+volume
	default:
		share := f.share(way)
		still = f.lastSet(min(f.rate(), share*float64(f.Link.Bandwidth)), share) + float64(f.VolumeLast)
		sent = f.carried(share) + volume
		if !f.Costs.Whole {
			memory = f.lastSet(f.rate(), share)
		}
	}
	link := float64(f.Link.Bandwidth)
	outage += still/link + memory/float64(f.Costs.Handling)
	p.Blockers = f.Blockers
	p.Outage = span(outage)
	p.Bytes = api.Bytes(min(sent, largest))
	p.Total = span(seconds(f.Costs.Prepare) + (sent-min(still, sent))/link + outage)
	return p
}

// rate at which the VE writes memory, per second, when nothing slows it down.
func (f Facts) rate() float64 {
	if f.Load.DirtyRate < 0 {
		return float64(guessedRate)
	}
	return float64(f.Load.DirtyRate)
}

// share of the link that goes for what the VE writes while it is copied; 1 and more: the link can't keep up.
func (f Facts) share(way Way) float64 {
	share := f.rate() / float64(f.Link.Bandwidth)
	if way == Throttle {
		share = min(share, max(throttled, slowest*share))
	}
	return share
}

// lastSet is how many bytes of a pre-copy remain for the time when the VE stands still, if it writes at a rate: what it writes
// while the shortest round there is goes over the link, or more where the rounds do not suffice.
func (f Facts) lastSet(rate, share float64) float64 {
	memory := float64(f.Load.Memory)
	if share >= 1 {
		return memory
	}
	return min(memory, max(rate*seconds(leastRound)/(1-share), memory*math.Pow(share, mostRounds)))
}

// rounds of a pre-copy until its last set remains.
func (f Facts) rounds(way Way) int {
	share := f.share(way)
	memory, last := float64(f.Load.Memory), f.lastSet(f.rate(), share)
	if last <= 0 || share <= 0 || share >= 1 || memory <= last {
		return 2
	}
	return max(2, min(mostRounds, int(math.Ceil(math.Log(last/memory)/math.Log(share)))+1))
}

// carried is what a pre-copy sends in all.
func (f Facts) carried(share float64) float64 {
	if share >= 1 {
		return float64(f.Load.Memory) * mostRounds
	}
	return float64(f.Load.Memory) * min(1/(1-share), mostRounds)
}

func seconds(d time.Duration) float64 { return d.Seconds() }

// span is a time in seconds as a duration, cut off where it has lost all meaning.
func span(s float64) time.Duration {
	if !(s < longest.Seconds()) { // NaN too
		return longest
	}
	return time.Duration(max(s, 0) * float64(time.Second))
}

// roundUp makes a time that a user can write out of a prediction, with a margin.
func roundUp(d time.Duration) time.Duration {
	d += d / 5
	for unit := 100 * time.Millisecond; ; unit *= 10 {
		if d <= 100*unit || unit > 24*time.Hour {
			return (d + unit - 1) / unit * unit
		}
	}
}

// short prints a duration as people read it, in a form that flags take too.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
