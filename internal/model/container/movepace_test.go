package container

import (
	"testing"
	"time"

	"polder/api"
)

func TestPace(t *testing.T) {
	const link = 100 // MiB a second
	for name, c := range map[string]struct {
		memory, dirty float64 // MiB; a second
		wanted        time.Duration
		rounds, brake int
	}{
		"idle":                    {1024, 0, time.Second, 2, 0},
		"nothing":                 {0, 0, time.Second, 1, 0},
		"small":                   {1, 100, time.Second, 1, 0},
		"calm":                    {1024, 10, time.Second, 4, 0},
		"what is left is allowed": {50, 90, time.Second, 2, 0},
		"half of the link":        {1024, 50, 100 * time.Millisecond, 10, 0},
		"as much as the link":     {1024, 100, 100 * time.Millisecond, 11, 50},
		"more than the link":      {1024, 300, 100 * time.Millisecond, 9, 90},
		"beyond all brakes":       {1024, 9000, 100 * time.Millisecond, 6, 96},
	} {
		p := pace{wanted: c.wanted}
		for sent := c.memory; ; {
			took := sent / link
			again, _ := p.next(api.Bytes(sent*float64(api.MiB)), time.Duration(took*float64(time.Second)))
			if !again {
				break
			}
			sent = min(c.memory, c.dirty*took*float64(100-p.brake)/100)
		}
		if p.rounds != c.rounds || p.brake != c.brake {
			t.Errorf("%s: %v; want %d rounds, slowed down by %d", name, &p, c.rounds, c.brake)
		}
	}
}
