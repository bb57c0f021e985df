package vm

import (
	"testing"
	"time"

	"polder/api"
)

// copying is a pre-copy as QEMU would tell of it, at 100 MiB/s.
type copying struct {
	got migration
	now time.Time
}

const linkSpeed = 100 << 20

func begun() *copying {
	c := &copying{now: time.Unix(0, 0)}
	c.got.RAM.Rounds, c.got.RAM.PageSize = 1, 4096
	return c
}

// send is a round in which so much is sent.
func (c *copying) send(bytes int64) {
	c.now = c.now.Add(time.Duration(float64(bytes) / linkSpeed * float64(time.Second)))
	c.got.RAM.Transferred += bytes
	c.got.RAM.Rounds++
}

// look gives what is ordered at a round's end, and that it is ordered once.
func (c *copying) look(t *testing.T, p *pace) order {
	t.Helper()
	first, err := p.next(c.got, c.now)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.next(c.got, c.now); again != nil || err != nil {
		t.Errorf("asked twice in a round: %v, %v", again, err)
	}
	return first
}

func TestPaceOfAVEThatRests(t *testing.T) {
	p, c := newPace(300*time.Millisecond), begun()
	if p.limit != firstLimit {
		t.Errorf("it begins with %s", p.limit)
	}
	if change := c.look(t, p); change != nil {
		t.Errorf("at the beginning: %v", change)
	}
	c.send(512 << 20)
	if change := c.look(t, p); len(change) != 1 || change["avail-switchover-bandwidth"] != int64(linkSpeed) {
		t.Errorf("after the first round: %v", change)
	}
	for n := 3; n <= patientRounds; n++ {
		c.send(100 << 10) // too little to tell anything
		if change := c.look(t, p); change != nil {
			t.Errorf("in round %d: %v", n, change)
		}
	}
	c.send(0)
	if change := c.look(t, p); change["downtime-limit"] != int64(180) {
		t.Errorf("it has no end: %v", change)
	}
}

func TestPaceOfAVEThatWrites(t *testing.T) {
	p, c := newPace(300*time.Millisecond), begun()
	c.look(t, p)
	c.send(512 << 20)
	c.got.RAM.DirtyPages = linkSpeed / 2 / 4096
	if change := c.look(t, p); change["downtime-limit"] != int64(180) || change["avail-switchover-bandwidth"] != int64(linkSpeed) {
		t.Errorf("after the first round: %v", change)
	}
	c.send(256 << 20)
	if change := c.look(t, p); change != nil {
		t.Errorf("it has what it may already: %v", change)
	}
}

func TestPaceEnds(t *testing.T) {
	p, c := newPace(300*time.Millisecond), begun()
	c.got.RAM.Rounds = mostRounds + 1
	if _, err := p.next(c.got, c.now); api.KindOf(err) != api.Precondition {
		t.Errorf("without end: %v", err)
	}
}

func TestPaceOfASmallBudget(t *testing.T) {
	if p := newPace(8 * time.Millisecond); p.limit != 4*time.Millisecond || p.most != 4*time.Millisecond {
		t.Errorf("limit %s, most %s", p.limit, p.most)
	}
}
