package host

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"polder/api"
	"polder/internal/store"
)

// Events tells what happened after the event `after` (0: from now on) until ctx is done. Events are not kept anywhere: they are
// read off the history of the records, so none is lost to a crash, and an event's id is the store's revision.
func (h *Host) Events(ctx context.Context, after int64, each func(api.Event) error) error {
	for entry := range h.store.History(ctx, after) {
		event, ok := h.event(entry)
		if !ok {
			continue
		}
		event.ID = entry.Revision
		if err := each(event); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// event reads one change; ok is false when it is none that users care for.
func (h *Host) event(entry store.Entry) (api.Event, bool) {
	if entry.Lost {
		return api.Event{Time: time.Now().UTC(), Kind: "events.lost", Text: "older events are no longer kept"}, true
	}
	if c, ok := h.ves.Change(entry); ok {
		return veEvent(c)
	}
	if now, before, ok := h.engine.Change(entry); ok {
		return operationEvent(now, before)
	}
	return api.Event{}, false
}

func veEvent(c store.Change[VE]) (api.Event, bool) {
	e := api.Event{Subject: "ve/" + c.Key, Time: time.Now().UTC(), Fields: map[string]string{}}
	switch {
	case c.Value == nil && c.Prev != nil:
		e.Kind, e.Text = "ve.deleted", fmt.Sprintf("ve %q deleted", c.Key)
		return e, true
	case c.Value == nil:
		return e, false
	}
	v := *c.Value
	e.Time = v.UpdatedAt
	e.Fields["host"], e.Fields["model"], e.Fields["state"] = v.Host, string(v.Model), string(v.State)
	if v.Reason != "" {
		e.Fields["reason"] = v.Reason
	}
	switch {
	case c.Prev == nil:
		e.Kind, e.Text = "ve.created", fmt.Sprintf("ve %q created from %s", v.Name, v.Image)
	case c.Prev.Host != v.Host:
		e.Kind, e.Text = "ve.moved", fmt.Sprintf("ve %q: host %s → %s", v.Name, c.Prev.Host, v.Host)
		e.Fields["before"] = c.Prev.Host
	case c.Prev.State != v.State:
		e.Kind, e.Text = "ve.state", fmt.Sprintf("ve %q: %s → %s", v.Name, c.Prev.State, v.State)
		e.Fields["before"] = string(c.Prev.State)
		if v.Reason != "" {
			e.Text += ": " + v.Reason
		}
	case c.Prev.Reason != v.Reason && v.Reason != "":
		e.Kind, e.Text = "ve.note", fmt.Sprintf("ve %q: %s", v.Name, v.Reason)
	default:
		return e, false
	}
	return e, true
}

func operationEvent(now, before *api.Operation) (api.Event, bool) {
	if now == nil || before != nil && before.State == now.State {
		return api.Event{}, false
	}
	what := strings.Replace(now.Kind, ".", " ", 1) + " " + now.Target
	e := api.Event{
		Kind: "operation." + string(now.State), Subject: "operation/" + now.ID, Time: now.UpdatedAt,
		Fields: map[string]string{"kind": now.Kind, "target": now.Target, "host": now.Host},
	}
	switch now.State {
	case api.OperationRunning:
		e.Text = what + " started"
	case api.OperationDone:
		e.Text = fmt.Sprintf("%s done in %v", what, now.UpdatedAt.Sub(now.CreatedAt).Round(time.Millisecond))
		if now.Kind == "move" {
			addMove(&e, now.Result)
		}
	default:
		e.Text = what + " " + string(now.State)
		if now.Error != nil {
			e.Text += ": " + now.Error.Detail
		}
	}
	return e, true
}

// addMove tells what came of a move; the names are those of api.MoveResult.
func addMove(e *api.Event, result json.RawMessage) {
	var r api.MoveResult
	if json.Unmarshal(result, &r) != nil || r.Mode == "" {
		return
	}
	for name, value := range map[string]string{
		"mode": string(r.Mode), "from": r.From, "to": r.To, "reason": r.Reason, "state_kept": strconv.FormatBool(r.StateKept),
		"outage_ms": strconv.FormatInt(r.OutageMS, 10), "total_ms": strconv.FormatInt(r.TotalMS, 10),
		"transferred_bytes": strconv.FormatInt(int64(r.TransferredBytes), 10),
	} {
		e.Fields[name] = value
	}
	e.Text += fmt.Sprintf(": %s, from %s to %s", r.Mode, r.From, r.To)
	if r.OutageMS >= 0 {
		e.Text += fmt.Sprintf(", outage %d ms", r.OutageMS)
	}
}
