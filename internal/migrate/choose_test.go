package migrate

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"polder/api"
	"polder/internal/model"
)

// gigabit is a link of 1 Gb/s, in bytes.

const gigabit = 125_000_000

func running(m api.Model, load model.Load) Facts {
	return Facts{Model: m, State: api.Running, Load: load, Link: Link{Bandwidth: gigabit, RTT: time.Millisecond}, Mode: api.Auto}
}

func TestChoose(t *testing.T) {
	idle := model.Load{Memory: api.GiB, DirtyRate: api.MiB, Throttle: true, PostCopy: true}
	busy := idle
	busy.DirtyRate = gigabit * 9 / 10
	frantic := idle
	frantic.DirtyRate = gigabit * 3 / 2
	wild := idle
	wild.DirtyRate = gigabit * 200 // a hundredth of that is still too much
	once := model.Load{Memory: 64 * api.MiB, DirtyRate: -1, Processes: 10}
	large := model.Load{Memory: 4 * api.GiB, DirtyRate: -1, Processes: 10}
	iouring := api.Blocker{Process: "db", PID: 7, Descriptor: "fd 5", Reason: "io_uring can't be carried", Remedy: "stop db", Except: api.Cold}
	cpu := api.Blocker{Reason: "the other host's CPU has no avx2", Except: api.Cold}
	pinned := api.Blocker{Reason: "no pool of the driver btrfs there"}
	with := func(f Facts, change func(*Facts)) Facts {
		change(&f)
		return f
	}
	for name, c := range map[string]struct {
		facts   Facts
		mode    api.MoveMode
		way     Way
		refused bool
		says    []string // in reason and remedy
	}{
		"an idle vm":                     {running(api.VM, idle), api.Live, PreCopy, false, []string{"1GiB of memory", "rounds", "warm would take"}},
		"a busy vm":                      {running(api.VM, busy), api.Live, PreCopy, false, nil},
		"a vm that outruns the link":     {running(api.VM, frantic), api.Live, Throttle, false, []string{"pre-copy would take"}},
		"which can't be throttled":       {with(running(api.VM, frantic), func(f *Facts) { f.Load.Throttle = false }), api.Live, PreCopy, true, []string{"--mode post-copy"}},
		"beyond all throttling":          {running(api.VM, wild), api.Live, PreCopy, true, []string{"pre-copy would take", "throttle would take", "--mode post-copy"}},
		"beyond it, but it is to be":     {with(running(api.VM, wild), func(f *Facts) { f.MaxDowntime = time.Second }), api.Live, PostCopy, false, []string{"throttle would take", "lost if either host dies"}},
		"beyond it, and no post-copy":    {with(running(api.VM, wild), func(f *Facts) { f.MaxDowntime, f.NoPostCopy = time.Second, "no" }), api.Live, PreCopy, true, nil},
		"beyond it, live as asked":       {with(running(api.VM, wild), func(f *Facts) { f.Mode = api.Live }), api.Live, PreCopy, false, []string{"shortest"}},
		"post-copy, as asked":            {with(running(api.VM, idle), func(f *Facts) { f.Mode = api.PostCopy }), api.Live, PostCopy, false, []string{"lost if either host dies"}},
		"post-copy, but quick":           {with(running(api.VM, idle), func(f *Facts) { f.Mode, f.MaxDowntime = api.PostCopy, time.Millisecond }), api.Live, PostCopy, true, []string{"--mode live"}},
		"post-copy of a container":       {with(running(api.Container, once), func(f *Facts) { f.Mode = api.PostCopy }), api.Live, PostCopy, true, []string{"of this container can't follow", "--mode live"}},
		"post-copy, not to there":        {with(running(api.VM, idle), func(f *Facts) { f.Mode, f.NoPostCopy = api.PostCopy, "no userfaultfd" }), api.Live, PostCopy, true, []string{"no userfaultfd"}},
		"post-copy, blocked":             {with(running(api.VM, idle), func(f *Facts) { f.Mode, f.Blockers = api.PostCopy, []api.Blocker{cpu} }), api.Live, "", true, []string{"--mode cold"}},
		"post-copy of a paused vm":       {with(running(api.VM, idle), func(f *Facts) { f.Mode, f.State = api.PostCopy, api.Paused }), api.Warm, "", false, nil},
		"a small container":              {running(api.Container, once), api.Live, PreCopy, false, []string{"64MiB"}},
		"a large one":                    {running(api.Container, large), api.Live, PreCopy, true, []string{"--max-downtime", "--mode warm"}},
		"a large one live, as asked":     {with(running(api.Container, large), func(f *Facts) { f.Mode = api.Live }), api.Live, PreCopy, false, []string{"shortest"}},
		"a large one, with patience":     {with(running(api.Container, large), func(f *Facts) { f.MaxDowntime = time.Minute }), api.Live, PreCopy, false, nil},
		"too much asked":                 {with(running(api.VM, idle), func(f *Facts) { f.MaxDowntime = time.Millisecond }), api.Live, PreCopy, true, []string{"--max-downtime"}},
		"warm":                           {with(running(api.VM, idle), func(f *Facts) { f.Mode = api.Warm }), api.Warm, "", false, []string{"as asked"}},
		"warm, but quick":                {with(running(api.VM, idle), func(f *Facts) { f.Mode, f.MaxDowntime = api.Warm, time.Second }), api.Warm, "", true, []string{"--mode live"}},
		"cold":                           {with(running(api.VM, idle), func(f *Facts) { f.Mode = api.Cold }), api.Cold, "", false, nil},
		"a blocker":                      {with(running(api.Container, once), func(f *Facts) { f.Blockers = []api.Blocker{iouring} }), api.Live, "", true, []string{"db fd 5: io_uring", "stop db", "--mode cold"}},
		"a blocker, warm":                {with(running(api.Container, once), func(f *Facts) { f.Mode, f.Blockers = api.Warm, []api.Blocker{iouring} }), api.Warm, "", true, []string{"--mode cold"}},
		"a blocker, cold":                {with(running(api.Container, once), func(f *Facts) { f.Mode, f.Blockers = api.Cold, []api.Blocker{iouring} }), api.Cold, "", false, nil},
		"another cpu":                    {with(running(api.VM, idle), func(f *Facts) { f.Blockers = []api.Blocker{cpu} }), api.Live, "", true, []string{"avx2", "--mode cold"}},
		"nothing goes":                   {with(running(api.VM, idle), func(f *Facts) { f.Mode, f.Blockers = api.Cold, []api.Blocker{pinned} }), api.Cold, "", true, []string{"btrfs", "another host"}},
		"stopped":                        {with(running(api.VM, idle), func(f *Facts) { f.State, f.Mode = api.Stopped, api.Live }), api.Cold, "", false, []string{"does not run"}},
		"stopped, and nothing goes":      {with(running(api.VM, idle), func(f *Facts) { f.State, f.Blockers = api.Stopped, []api.Blocker{pinned} }), api.Cold, "", true, []string{"another host"}},
		"stopped, what ran is no matter": {with(running(api.VM, idle), func(f *Facts) { f.State, f.Blockers = api.Stopped, []api.Blocker{cpu} }), api.Cold, "", false, nil},
		"paused":                         {with(running(api.VM, idle), func(f *Facts) { f.State, f.MaxDowntime = api.Paused, time.Millisecond }), api.Warm, "", false, []string{"paused"}},
		"starting":                       {with(running(api.VM, idle), func(f *Facts) { f.State = api.Starting }), api.Live, "", true, []string{"wait"}},
		"a slow limit":                   {with(running(api.VM, idle), func(f *Facts) { f.Limit = 100 * api.KiB }), api.Live, Throttle, false, []string{"100KiB/s"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := Choose(c.facts)
			if p.Mode != c.mode || p.Way != c.way || p.Possible == c.refused {
				t.Errorf("got %+v", p)
			}
			for _, word := range c.says {
				if !strings.Contains(p.Reason+" / "+p.Remedy, word) {
					t.Errorf("no %q in %q / %q", word, p.Reason, p.Remedy)
				}
			}
			if err := p.Err("c1"); (err != nil) != c.refused || err != nil && api.KindOf(err) != api.Precondition {
				t.Errorf("err %v", err)
			}
		})
	}
}

func anyBytes() *rapid.Generator[api.Bytes] {
	return rapid.Custom(func(t *rapid.T) api.Bytes {
		edge := rapid.SampledFrom([]api.Bytes{0, 1, -1, api.MiB, gigabit, api.TiB, math.MaxInt64, math.MinInt64}).Draw(t, "edge")
		return rapid.OneOf(rapid.Just(edge), rapid.Map(rapid.Int64Range(0, 1<<40), func(n int64) api.Bytes { return api.Bytes(n) })).Draw(t, "bytes")
	})
}

func anyFacts() *rapid.Generator[Facts] {
	return rapid.Custom(func(t *rapid.T) Facts {
		modes := []api.MoveMode{api.Auto, api.Live, api.PostCopy, api.Warm, api.Cold}
		f := Facts{
			Model: rapid.SampledFrom([]api.Model{api.Container, api.VM}).Draw(t, "model"),
			State: rapid.SampledFrom([]api.State{api.Running, api.Running, api.Running, api.Stopped, api.Paused, api.Failed, api.Starting, api.Stopping}).Draw(t, "state"),
			Load: model.Load{
				Memory: anyBytes().Draw(t, "memory"), DirtyRate: anyBytes().Draw(t, "dirty"), Processes: rapid.IntRange(-1, math.MaxInt).Draw(t, "processes"),
				Throttle: rapid.Bool().Draw(t, "throttle"), PostCopy: rapid.Bool().Draw(t, "post-copy"),
			},
			Volume: anyBytes().Draw(t, "volume"), VolumeLast: anyBytes().Draw(t, "last"),
			Link:  Link{Bandwidth: anyBytes().Draw(t, "bandwidth"), RTT: time.Duration(rapid.Int64().Draw(t, "rtt"))},
			Limit: anyBytes().Draw(t, "limit"), NoPostCopy: rapid.SampledFrom([]string{"", "no"}).Draw(t, "no post-copy"),
			Mode: rapid.SampledFrom(append(modes, "")).Draw(t, "mode"), MaxDowntime: time.Duration(rapid.Int64().Draw(t, "downtime")),
		}
		for range rapid.IntRange(0, 2).Draw(t, "blockers") {
			f.Blockers = append(f.Blockers, api.Blocker{
				Reason: "reason", Remedy: rapid.SampledFrom([]string{"", "remedy"}).Draw(t, "remedy"),
				Except: rapid.SampledFrom([]api.MoveMode{"", api.Live, api.Warm, api.Cold}).Draw(t, "except"),
			})
		}
		return f
	})
}

func TestEveryChoiceIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := anyFacts().Draw(t, "facts")
		p := Choose(f)
		switch {
		case p.Reason == "":
			t.Fatalf("no reason: %+v", p)
		case !p.Possible && p.Remedy == "":
			t.Fatalf("refused without a remedy: %+v", p)
		case p.Outage < 0 || p.Total < 0 || p.Bytes < 0:
			t.Fatalf("less than nothing: %+v", p)
		case p.Total < p.Outage && f.State == api.Running && p.Possible:
			t.Fatalf("the outage is longer than all: %+v", p)
		case p.Mode != api.Live && p.Mode != api.Warm && p.Mode != api.Cold:
			t.Fatalf("no mode: %+v", p)
		case strings.Contains(p.Reason+p.Remedy, "NaN") || strings.Contains(p.Reason+p.Remedy, "Inf"):
			t.Fatalf("no number: %+v", p)
		}
		if !p.Possible {
			return
		}
		for _, b := range f.Blockers {
			if harder(p.Mode, b.Except) != p.Mode {
				t.Fatalf("%+v stands in the way of %+v", b, p)
			}
		}
		if p.Mode == api.Cold && f.Mode != api.Cold && (f.State == api.Running || f.State == api.Paused) {
			t.Fatalf("cold was not asked for: %+v", p)
		}
		if p.Way == PostCopy && (f.follows() != nil || f.Mode != api.PostCopy && f.MaxDowntime <= 0) {
			t.Fatalf("post-copy was not asked for, or can't be: %+v", p)
		}
		if f.State == api.Running && f.MaxDowntime > 0 && p.Outage > f.MaxDowntime {
			t.Fatalf("the wanted outage is not kept: %+v", p)
		}
	})
}

// smaller by more than what is lost in rounding.
func smaller[T ~int64](a, b T) bool { return float64(a) < float64(b)*(1-1e-9)-1000 }

func TestPredictionsGrowWithMemoryAndShrinkWithBandwidth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		less := anyFacts().Draw(t, "facts").settled()
		more, slower := less, less
		more.Load.Memory = api.Bytes(rapid.Int64Range(int64(less.Load.Memory), math.MaxInt64).Draw(t, "more"))
		slower.Link.Bandwidth = api.Bytes(rapid.Int64Range(1, int64(less.Link.Bandwidth)).Draw(t, "slower"))
		for _, way := range []Way{PreCopy, Throttle, PostCopy} {
			p := less.predict(api.Live, way)
			if q := more.predict(api.Live, way); smaller(q.Outage, p.Outage) || smaller(q.Total, p.Total) || smaller(q.Bytes, p.Bytes) {
				t.Fatalf("%s: more memory: %+v, less: %+v", way, q, p)
			}
			if q := slower.predict(api.Live, way); smaller(q.Outage, p.Outage) || smaller(q.Total, p.Total) {
				t.Fatalf("%s: slower: %+v, faster: %+v", way, q, p)
			}
		}
		for _, mode := range []api.MoveMode{api.Warm, api.Cold} {
			p := less.predict(mode, "")
			if q := more.predict(mode, ""); smaller(q.Outage, p.Outage) || smaller(q.Total, p.Total) {
				t.Fatalf("%s: more memory: %+v, less: %+v", mode, q, p)
			}
			if q := slower.predict(mode, ""); smaller(q.Outage, p.Outage) || smaller(q.Total, p.Total) {
				t.Fatalf("%s: slower: %+v, faster: %+v", mode, q, p)
			}
		}
	})
}

// What is proposed as a remedy has to help.
func TestARemedyHelps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := anyFacts().Draw(t, "facts")
		p := Choose(f)
		_, rest, ok := strings.Cut(p.Remedy, "--max-downtime ")
		if p.Possible || !ok {
			return
		}
		word, _, _ := strings.Cut(rest, ",")
		wanted, err := time.ParseDuration(word)
		if err != nil {
			t.Fatalf("remedy %q: %v", p.Remedy, err)
		}
		f.MaxDowntime = wanted
		if again := Choose(f); !again.Possible {
			t.Fatalf("with %s still: %+v", wanted, again)
		}
	})
}
