package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"polder/api"
)

// showAfter keeps bars off the screen for what is done in the blink of an eye.
const showAfter = 150 * time.Millisecond

// progress shows on standard error how operations and transfers go on: as bars on a terminal, as one line a step
// elsewhere. Safe for concurrent use.
type progress struct {
	out      io.Writer
	terminal bool

	mu     sync.Mutex    // guards the rest, and the order of lines
	bars   *mpb.Progress // nil: none on the screen (yet)
	live   []*tracker
	timer  *time.Timer
	closed bool
}

// newProgress starts showing; close must be called before anything else is printed to the terminal.
func (a *app) newProgress() *progress {
	p := &progress{out: a.stderr, terminal: a.stderrIsTerminal()}
	if p.terminal {
		p.timer = time.AfterFunc(showAfter, p.show)
	}
	return p
}

// show puts the bars on the screen.
func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.bars = mpb.New(mpb.WithOutput(p.out), mpb.WithWidth(28))
	for _, t := range p.live {
		t.draw()
	}
}

// line prints a line, above the bars where there are some.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := printable(fmt.Sprintf(format, args...)) + "\n"
	if p.bars != nil && !p.closed {
		io.WriteString(p.bars, text)
		return
	}
	io.WriteString(p.out, text)
}

// returnCursor undoes what the terminal's echo of Ctrl-C did to the cursor's column, which the bars rely on.
func (p *progress) returnCursor() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars != nil {
		io.WriteString(p.out, "\r")
	}
}

// close takes the bars off the screen.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.bars != nil {
		p.bars.Shutdown()
	}
}

// tracker is one line of progress: an operation or a transfer. Its methods are for one goroutine, drawing aside.
type tracker struct {
	p     *progress
	title string
	start time.Time
	said  map[string]bool // steps already printed
	bar   *mpb.Bar        // nil: not on the screen; guarded by p.mu

	mu     sync.Mutex // guards the rest; taken after p.mu
	label  string     // the step under way
	amount api.Progress
}

// track starts a line of progress.
func (p *progress) track(title string) *tracker {
	t := &tracker{p: p, title: title, start: time.Now(), said: map[string]bool{}}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live = append(p.live, t)
	if p.bars != nil && !p.closed {
		t.draw()
	}
	return t
}

// draw puts the tracker's bar on the screen; p.mu is held.
func (t *tracker) draw() {
	t.bar = t.p.bars.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return t.head() }, decor.WC{C: decor.DSyncWidthR | decor.DextraSpace})),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return t.tail() })),
	)
	t.mu.Lock()
	now := t.amount
	t.mu.Unlock()
	t.move(now)
}

// move sets the bar, if there is one; p.mu is held. At its total a bar would end, so it stays just below.
func (t *tracker) move(now api.Progress) {
	if t.bar != nil {
		t.bar.SetTotal(now.Total, false)
		t.bar.SetCurrent(min(now.Done, max(now.Total-1, 0)))
	}
}

func (t *tracker) head() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.label == "" {
		return printable(t.title)
	}
	return printable(t.title + ": " + t.label)
}

func (t *tracker) tail() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	elapsed := time.Since(t.start).Truncate(time.Second).String()
	if text := amount(t.amount); text != "" {
		return text + "  " + elapsed
	}
	return elapsed
}

// amount prints how much of something is done.
func amount(p api.Progress) string {
	show := func(n int64) string { return fmt.Sprint(n) }
	unit := " " + p.Unit
	if p.Unit == "bytes" {
		show = func(n int64) string { return api.Bytes(n).String() }
		unit = ""
	}
	switch {
	case p.Total > 0:
		return show(p.Done) + " / " + show(p.Total) + unit
	case p.Done > 0:
		return show(p.Done) + unit
	}
	return ""
}

// set shows how far the step under way is.
func (t *tracker) set(label string, amount api.Progress) {
	t.mu.Lock()
	t.label, t.amount = label, amount
	t.mu.Unlock()
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.move(amount)
}

// operation shows the state of an operation. A step that is done gets a line of its own where there are no bars.
func (t *tracker) operation(op api.Operation) {
	now := api.Progress{Unit: "steps", Total: int64(len(op.Steps))}
	for _, step := range op.Steps {
		if step.FinishedAt == nil || step.Undone {
			continue
		}
		now.Done++
		if !t.p.terminal && !t.said[step.Name] {
			t.said[step.Name] = true
			t.p.line("%s: %s %s", t.title, step.Name, stepTook(step))
		}
	}
	label := op.Step
	if op.State == api.OperationUndoing {
		label = "undoing " + op.Step
		if !t.p.terminal && !t.said["\x00undo"] {
			t.said["\x00undo"] = true
			t.p.line("%s: undoing", t.title)
		}
	}
	if op.Progress != nil && (op.Progress.Done > 0 || op.Progress.Total > 0) {
		now = *op.Progress
	}
	t.set(label, now)
}

// done ends the line of progress with a summary (empty: none).
func (t *tracker) done(summary string) {
	t.p.mu.Lock()
	t.p.live = slices.DeleteFunc(t.p.live, func(other *tracker) bool { return other == t })
	bar := t.bar
	t.p.mu.Unlock()
	if bar != nil {
		bar.Abort(true)
		bar.Wait()
	}
	if summary != "" {
		t.p.line("%s: %s", t.title, summary)
	}
}

// reader counts what is read through it.
func (t *tracker) reader(r io.Reader, label string, total int64) io.Reader {
	t.set(label, api.Progress{Total: total, Unit: "bytes"})
	return &countingReader{r: r, t: t, label: label, total: total}
}

type countingReader struct {
	r     io.Reader
	t     *tracker
	label string
	total int64
	done  int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.t.set(c.label, api.Progress{Done: c.done, Total: c.total, Unit: "bytes"})
	return n, err
}

func stepTook(step api.OperationStep) string {
	if step.StartedAt == nil || step.FinishedAt == nil {
		return ""
	}
	return took(step.FinishedAt.Sub(*step.StartedAt))
}

// summary says how an operation ended and what its steps took.
func summary(op api.Operation) string {
	switch op.State {
	case api.OperationCancelled:
		return "cancelled, and what it had done is undone"
	case api.OperationFailed:
		return "failed, and what it had done is undone"
	default:
	}
	text := "done in " + took(op.UpdatedAt.Sub(op.CreatedAt))
	var steps []string
	for _, step := range op.Steps {
		if step.StartedAt != nil && step.FinishedAt != nil {
			steps = append(steps, step.Name+" "+stepTook(step))
		}
	}
	if len(steps) > 1 {
		text += " (" + strings.Join(steps, ", ") + ")"
	}
	return text
}

// took prints a duration as people read it.
func took(d time.Duration) string {
	switch {
	case d < 0:
		return "0 ms"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Truncate(time.Second).String()
}
