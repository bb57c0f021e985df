package migrate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"polder/api"
	"polder/internal/model"
)

// LiveOutage is the outage that a move keeps which was not told another.
const LiveOutage = time.Second

// Way is how memory is carried in a live move.
type Way string

// The ways, from the gentlest.
const (
	PreCopy  Way = "pre-copy"  // memory is copied while the VE runs, again and again what it wrote meanwhile
	Throttle Way = "throttle"  // the same, with the VE slowed down until the link keeps up
	PostCopy Way = "post-copy" // the VE goes on at the target at once, and its memory follows
)

// Facts are what the choice is made from.
type Facts struct {
	Model api.Model
	State api.State
	Load  model.Load
	// Volume is what has to be sent of the VE's volume; VolumeLast the part of it that a live move sends while the VE stands still.
	Volume, VolumeLast api.Bytes
	Link               Link
	// Limit is the bandwidth that the user allows, per second; 0: all.
	Limit api.Bytes
	// NoPostCopy is why memory can't follow a VE to the target; "": it can, where Load says so.
	NoPostCopy  string
	Mode        api.MoveMode
	MaxDowntime time.Duration // 0: not given
	Blockers    []api.Blocker
	Costs       Costs
}

// Plan is how a VE would be moved.
type Plan struct {
	Mode     api.MoveMode
	Way      Way // of a live move
	Possible bool
	// Reason why it is this one, or why there is none; Remedy is what would help then.
	Reason, Remedy string
	Outage, Total  time.Duration
	Bytes          api.Bytes
	// Blockers that stand in the way of the mode, or of gentler ones.
	Blockers []api.Blocker
}

// Err is why the VE can't be moved; nil when it can.
func (p Plan) Err(ve string) error {
	if p.Possible {
		return nil
	}
	return api.Errorf(api.Precondition, "move %q: %s; what would help: %s", ve, p.Reason, p.Remedy)
}

// View is the plan as users see it.
func (p Plan) View(ve, from, to string) api.MovePlan {
	view := api.MovePlan{
		VE: ve, From: from, To: to, Mode: p.Mode, Way: string(p.Way), Possible: p.Possible, Reason: p.Reason, Remedy: p.Remedy,
		OutageMS: p.Outage.Milliseconds(), TotalMS: p.Total.Milliseconds(), Bytes: p.Bytes, Blockers: p.Blockers,
	}
	if view.Blockers == nil {
		view.Blockers = []api.Blocker{}
	}
	return view
}

// Choose takes the gentlest way that keeps the wanted outage: pre-copy, throttle, post-copy. It never takes a mode that loses the
// VE's state, or that stops it for longer than wanted, unless that mode was asked for: it refuses then. Post-copy can lose a VE, so it
// is taken only when it was asked for, or when nothing else keeps an outage that was.
func Choose(f Facts) Plan {
	f = f.settled()
	switch f.State {
	case api.Stopped, api.Failed:
		return f.still(api.Cold, "it does not run, so only its volume is sent")
	case api.Paused:
		if f.Mode != api.Cold {
			return f.still(api.Warm, "it is paused, so there is nothing to interrupt")
		}
	case api.Running:
	default:
		return Plan{Mode: f.named(), Reason: fmt.Sprintf("it is %s", f.State), Remedy: "wait until it is running or stopped", Blockers: f.Blockers}
	}
	switch f.Mode {
	case api.Warm, api.Cold:
		return f.asked(f.predict(f.Mode, ""))
	case api.PostCopy:
		return f.postCopy()
	}
	return f.live()
}

// live chooses among the ways of a live move.
func (f Facts) live() Plan {
	if blocked := f.blockedBy(api.Live); len(blocked) > 0 {
		return f.blocked(api.Live, blocked)
	}
	var tried []Plan
	for _, way := range f.ways() {
		p := f.predict(api.Live, way)
		if p.Outage <= f.wanted() {
			p.Possible, p.Reason = true, f.explain(p, tried)
			return p
		}
		tried = append(tried, p)
	}
	best := slices.MinFunc(tried, func(a, b Plan) int { return compare(a.Outage, b.Outage) })
	if f.Mode == api.Live && f.MaxDowntime == 0 {
		best.Possible, best.Reason = true, f.explain(best, nil)+", the shortest there is"
		return best
	}
	best.Reason = fmt.Sprintf("live is not expected to keep %s: %s", short(f.wanted()), f.told(tried))
	best.Remedy = f.otherwise(best.Outage, api.Warm)
	if f.follows() == nil && f.predict(api.Live, PostCopy).Outage <= f.wanted() {
		best.Remedy += ", or --mode " + string(api.PostCopy)
	}
	return best
}

// postCopy is a live move in the one way that the user named.
func (f Facts) postCopy() Plan {
	if blocked := f.blockedBy(api.Live); len(blocked) > 0 {
		return f.blocked(api.Live, blocked)
	}
	p := f.predict(api.Live, PostCopy)
	if err := f.follows(); err != nil {
		p.Reason, p.Remedy = fmt.Sprintf("%s is not possible: %v", PostCopy, err), "--mode "+string(api.Live)
		return p
	}
	if f.MaxDowntime > 0 && p.Outage > f.MaxDowntime {
		p.Reason = fmt.Sprintf("%s is not expected to keep %s: it would take about %s", PostCopy, short(f.MaxDowntime), short(p.Outage))
		p.Remedy = f.otherwise(p.Outage, api.Live)
		return p
	}
	p.Possible, p.Reason = true, f.explain(p, nil)
	return p
}

// follows is why the VE's memory can't follow it; nil when it can.
func (f Facts) follows() error {
	switch {
	case !f.Load.PostCopy:
		return fmt.Errorf("the memory of this %s can't follow it", f.Model)
	case f.NoPostCopy != "":
		return errors.New(f.NoPostCopy)
	}
	return nil
}

// asked checks a mode that the user named.
func (f Facts) asked(p Plan) Plan {
	if blocked := f.blockedBy(p.Mode); len(blocked) > 0 {
		return f.blocked(p.Mode, blocked)
	}
	p.Blockers = f.Blockers
	if f.MaxDowntime > 0 && p.Outage > f.MaxDowntime {
		p.Reason = fmt.Sprintf("%s is not expected to keep %s: it would take about %s", p.Mode, short(f.MaxDowntime), short(p.Outage))
		p.Remedy = f.otherwise(p.Outage, api.Live)
		return p
	}
	p.Possible = true
	p.Reason = fmt.Sprintf("%s, as asked: %s at %s/s, about %s outage", p.Mode, p.Bytes, f.Link.Bandwidth, short(p.Outage))
	return p
}

// still is the move of a VE that is not running: nobody waits for it.
func (f Facts) still(mode api.MoveMode, reason string) Plan {
	if blocked := f.blockedBy(mode); len(blocked) > 0 {
		return f.blocked(mode, blocked)
	}
	p := f.predict(mode, "")
	p.Outage = 0
	p.Possible, p.Reason = true, fmt.Sprintf("%s: %s", mode, reason)
	return p
}

// blocked is the refusal of a mode that something stands in the way of.
func (f Facts) blocked(mode api.MoveMode, by []api.Blocker) Plan {
	var reasons, remedies []string
	rest := api.Live // the gentlest mode that nothing stands in the way of
	for _, b := range by {
		what := strings.TrimSpace(strings.Join([]string{b.Process, b.Descriptor}, " "))
		if what != "" {
			what += ": "
		}
		reasons = append(reasons, what+b.Reason)
		if b.Remedy != "" && !slices.Contains(remedies, b.Remedy) {
			remedies = append(remedies, b.Remedy)
		}
		rest = harder(rest, b.Except)
	}
	for _, b := range f.Blockers {
		rest = harder(rest, b.Except)
	}
	switch {
	case rest == "" && len(remedies) == 0:
		remedies = append(remedies, "another host")
	case rest != "":
		remedies = append(remedies, "--mode "+string(rest))
	}
	return Plan{
		Mode: mode, Blockers: f.Blockers,
		Reason: fmt.Sprintf("%s is not possible: %s", mode, strings.Join(reasons, "; ")), Remedy: strings.Join(remedies, ", or "),
	}
}

// blockedBy lists what forbids a mode.
func (f Facts) blockedBy(mode api.MoveMode) []api.Blocker {
	var by []api.Blocker
	for _, b := range f.Blockers {
		if harder(mode, b.Except) != mode {
			by = append(by, b)
		}
	}
	return by
}

// harder is the less gentle of two modes; "" is none at all.
func harder(a, b api.MoveMode) api.MoveMode {
	order := []api.MoveMode{api.Live, api.Warm, api.Cold}
	i, j := slices.Index(order, a), slices.Index(order, b)
	if i < 0 || j < 0 {
		return ""
	}
	return order[max(i, j)]
}

// ways that the model has for this VE, from the gentlest.
func (f Facts) ways() []Way {
	ways := []Way{PreCopy}
	if f.Load.Throttle {
		ways = append(ways, Throttle)
	}
	if f.MaxDowntime > 0 && f.follows() == nil {
		ways = append(ways, PostCopy)
	}
	return ways
}

func (f Facts) wanted() time.Duration {
	if f.MaxDowntime > 0 {
		return f.MaxDowntime
	}
	return LiveOutage
}

// named is the mode for a plan in which none could be chosen.
func (f Facts) named() api.MoveMode {
	if f.Mode == api.Auto || f.Mode == api.PostCopy {
		return api.Live
	}
	return f.Mode
}

// explain says in plain words what a live move would be like.
func (f Facts) explain(p Plan, tried []Plan) string {
	text := fmt.Sprintf("live: %s of memory at %s/s, %s, about %s outage", f.Load.Memory, f.Link.Bandwidth, p.Way, short(p.Outage))
	if p.Way == PreCopy || p.Way == Throttle {
		text = fmt.Sprintf("live: %s of memory at %s/s, %s in %d rounds, about %s outage", f.Load.Memory, f.Link.Bandwidth, p.Way, f.rounds(p.Way), short(p.Outage))
	}
	if len(tried) > 0 {
		text += "; " + f.told(tried)
	}
	if p.Way == PostCopy {
		text += "; until all memory has followed, the VE is lost if either host dies"
	}
	return text + fmt.Sprintf("; warm would take %s", short(f.predict(api.Warm, "").Outage))
}

// told says what ways would take that were not taken.
func (f Facts) told(tried []Plan) string {
	var words []string
	for _, p := range tried {
		words = append(words, fmt.Sprintf("%s would take %s", p.Way, short(p.Outage)))
	}
	return strings.Join(words, ", ")
}

// otherwise is what would help a move whose outage is longer than wanted: to want less, or another mode.
func (f Facts) otherwise(outage time.Duration, mode api.MoveMode) string {
	text := "--max-downtime " + short(roundUp(outage))
	if len(f.blockedBy(mode)) == 0 {
		text += ", or --mode " + string(mode)
	}
	return text
}

func compare(a, b time.Duration) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
