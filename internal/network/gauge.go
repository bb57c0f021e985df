package network

import "time"

// Observed is what was seen of a VE from outside.
type Observed struct {
	// Longest is the longest time in which the VE did not answer, from its last answer before to its first one after. From and To
	// are when. A time that has not ended yet counts. It is 0 when Answering is false.
	Longest time.Duration `json:"longest_ns"`
	From    time.Time     `json:"from"`
	To      time.Time     `json:"to"`
	// Sent requests, and how many of them were Answered, however late.
	Sent     int `json:"sent"`
	Answered int `json:"answered"`
	// Answering: it answered at least once.
	Answering bool      `json:"answering"`
	Last      time.Time `json:"last"` // of its answers
	// Every is the longest time between two requests: what is shorter can't be told.
	Every time.Duration `json:"every_ns"`
}

// gauge makes an Observed of requests and answers. Times are those of one clock, which is never set.
type gauge struct {
	every       time.Duration
	seen        Observed
	outstanding map[uint64]bool
	sent        []time.Duration // requests after the last answer
	last        time.Duration   // answer
	lastSent    time.Duration
	from, to    time.Duration
}

func newGauge(every time.Duration) *gauge {
	return &gauge{every: every, outstanding: map[uint64]bool{}}
}

// request notes that a request was sent.
func (g *gauge) request(number uint64, at time.Duration) {
	if g.seen.Sent > 0 {
		g.seen.Every = max(g.seen.Every, at-g.lastSent)
	}
	g.seen.Sent++
	g.lastSent = at
	g.outstanding[number] = true
	g.sent = append(g.sent, at)
}

// answer notes that a request was answered. Answers come in the order of at.
func (g *gauge) answer(number uint64, at time.Duration) {
	if !g.outstanding[number] {
		return // once is enough, and nobody answers what was not asked
	}
	delete(g.outstanding, number)
	g.seen.Answered++
	g.silent(at)
	g.seen.Answering, g.last = true, max(g.last, at)
	for len(g.sent) > 0 && g.sent[0] <= g.last {
		g.sent = g.sent[1:]
	}
}

// silent notes that there was no answer from the last one up to now. What was not asked can't be answered: when the next request
// was late, the silence begins when it was due.
func (g *gauge) silent(now time.Duration) {
	if !g.seen.Answering {
		return
	}
	from := g.last
	if len(g.sent) > 0 {
		from = max(from, g.sent[0]-g.every)
	}
	if now-from > g.seen.Longest {
		g.seen.Longest, g.from, g.to = now-from, from, now
	}
}

// observed is what was seen up to now; wall is the time of day when the gauge's clock was at 0.
func (g *gauge) observed(now time.Duration, wall time.Time) Observed {
	ongoing := *g
	if len(g.sent) > 0 { // else it has answered all
		ongoing.silent(now)
	}
	seen := ongoing.seen
	if seen.Answering {
		seen.From, seen.To, seen.Last = wall.Add(ongoing.from), wall.Add(ongoing.to), wall.Add(g.last)
	}
	return seen
}
