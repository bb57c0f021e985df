package server

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"polder/api"
)

// told is a backend that tells of some events and ends each time: the next call is asked for what comes after.
type told struct {
	Backend
	events []api.Event
	all    chan struct{} // closed when there are no more
}

func (b *told) Events(ctx context.Context, after int64, each func(api.Event) error) error {
	for _, e := range b.events {
		if e.ID > after {
			return each(e)
		}
	}
	close(b.all)
	<-ctx.Done()
	return ctx.Err()
}

func TestMovesAreCounted(t *testing.T) {
	event := func(id int64, kind, state string, fields ...string) api.Event {
		e := api.Event{ID: id, Kind: "operation." + state, Fields: map[string]string{"kind": kind}}
		for i := 0; i < len(fields); i += 2 {
			e.Fields[fields[i]] = fields[i+1]
		}
		return e
	}
	backend := &told{events: []api.Event{
		event(1, "move", "running"),
		event(2, "move", "done", "mode", "live", "outage_ms", "40", "transferred_bytes", "1000"),
		event(3, "move", "done", "mode", "cold", "outage_ms", "-1", "transferred_bytes", "500"),
		event(4, "launch", "done"),
		event(5, "move", "failed"),
		event(6, "move", "cancelled"),
		{ID: 7, Kind: "ve.created"},
	}}
	m := newMoveMetrics()
	registry := prometheus.NewRegistry()
	m.register(registry)
	synctest.Test(t, func(t *testing.T) {
		backend.all = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go m.follow(ctx, backend)
		<-backend.all
		m.follow(ctx, backend) // a second listener's counts nothing twice
		cancel()
	})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range families {
		all.WriteString(f.String() + "\n")
	}
	text := strings.Join(strings.Fields(all.String()), " ")
	for _, want := range []string{
		`label:{name:"state" value:"done"} counter:{value:2`, `label:{name:"state" value:"failed"} counter:{value:1`,
		`label:{name:"state" value:"cancelled"} counter:{value:1`, `histogram:{sample_count:1 sample_sum:0.04`,
		`label:{name:"mode" value:"live"} counter:{value:1000`, `label:{name:"mode" value:"cold"} counter:{value:500`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}
