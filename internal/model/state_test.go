package model

import (
	"os"
	"slices"
	"strings"
	"testing"

	"polder/api"

	"pgregory.net/rapid"
)

// documented reads the table in the comment of Next.
func documented(t *testing.T) map[api.State]map[Event]api.State {
	t.Helper()
	source, err := os.ReadFile("state.go")
	if err != nil {
		t.Fatal(err)
	}
	var head []string
	table := map[api.State]map[Event]api.State{}
	for line := range strings.Lines(string(source)) {
		row, ok := strings.CutPrefix(line, "//\t")
		if !ok || !strings.Contains(row, "|") {
			continue
		}
		fields := strings.Split(row, "|")
		for i := range fields {
			fields[i] = strings.TrimSpace(fields[i])
		}
		if head == nil {
			head = fields
			continue
		}
		table[api.State(fields[0])] = map[Event]api.State{}
		for i, next := range fields[1:] {
			if next != "" {
				table[api.State(fields[0])][Event(head[i+1])] = api.State(next)
			}
		}
	}
	return table
}

func TestNextDoesWhatItsTableSays(t *testing.T) {
	table := documented(t)
	if len(table) != len(States()) {
		t.Fatalf("the table has %d states, the api has %d", len(table), len(States()))
	}
	for _, state := range States() {
		for _, event := range Events() {
			want, allowed := table[state][event]
			got, err := Next(state, event)
			switch {
			case allowed && (err != nil || got != want):
				t.Errorf("Next(%s, %s) = %s, %v; the table says %s", state, event, got, err, want)
			case !allowed && (api.KindOf(err) != api.Precondition || got != state):
				t.Errorf("Next(%s, %s) = %s, %v; want the state unchanged and a precondition error", state, event, got, err)
			}
		}
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		state api.State
		event Event
		want  string
	}{
		{api.Stopped, Pause, "ve is stopped: start it first"},
		{api.Failed, Pause, "ve is failed: start it first"},
		{api.Stopped, Stop, "ve is stopped already"},
		{api.Running, Start, "ve is running already"},
		{api.Running, Resume, "ve is running already"},
		{api.Paused, Start, "ve is paused: resume it first"},
		{api.Starting, Pause, "ve is starting: wait until it runs"},
		{api.Stopping, Start, "ve is stopping: wait until it is stopped"},
		{api.Stopped, Crashed, "ve is stopped: it cannot have crashed"},
	} {
		if _, err := Next(c.state, c.event); err == nil || err.Error() != c.want {
			t.Errorf("Next(%s, %s): %v; want %q", c.state, c.event, err, c.want)
		}
	}
	for _, c := range []struct {
		state api.State
		event Event
	}{{"asleep", Start}, {api.Running, "explode"}} {
		if _, err := Next(c.state, c.event); api.KindOf(err) != api.Internal {
			t.Errorf("Next(%s, %s): %v; want an internal error", c.state, c.event, err)
		}
	}
}

// Whatever happens, a VE stays in a known state, and a stop followed by its end leads to stopped.
func TestEveryStateLeadsToStopped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := api.Stopped
		for _, event := range rapid.SliceOf(rapid.SampledFrom(Events())).Draw(t, "events") {
			state, _ = Next(state, event)
			if !slices.Contains(States(), state) {
				t.Fatalf("unknown state %q", state)
			}
		}
		state, _ = Next(state, Stop)
		state, _ = Next(state, Exited)
		if state != api.Stopped {
			t.Fatalf("stop and exited lead to %s", state)
		}
	})
}
