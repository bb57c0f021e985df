package operation

import (
	"sync"
	"time"

	"polder/api"
)

// progressInterval is the least time between two writes of one operation's progress.
const progressInterval = 200 * time.Millisecond

// progress holds back what steps report, and writes it now and then.
type progress struct {
	write func(step int, p api.Progress)

	mu     sync.Mutex // guards what follows; never held while writing
	latest api.Progress
	timer  *time.Timer // non-nil: a write is due
	step   int         // counts steps, so that a late write does not hit the next step
}

func (p *progress) report(done, total int64, unit string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latest = api.Progress{Done: done, Total: total, Unit: unit}
	if p.timer == nil {
		step := p.step
		p.timer = time.AfterFunc(progressInterval, func() { p.flush(step) })
	}
}

func (p *progress) flush(step int) {
	p.mu.Lock()
	if p.step != step {
		p.mu.Unlock()
		return
	}
	latest := p.latest
	p.timer = nil
	p.mu.Unlock()
	p.write(step, latest)
}

// reset drops what was not written: the step is over.
func (p *progress) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step++
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}

// current says whether step is still the one under way.
func (p *progress) current(step int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.step == step
}
