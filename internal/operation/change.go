package operation

import (
	"polder/api"
	"polder/internal/store"
)

// Change reads an entry of the store's history as a change of an operation: now and before are nil when it was pruned, or new.
// ok is false when the entry is about something else.
func (e *Engine) Change(entry store.Entry) (now, before *api.Operation, ok bool) {
	c, ok := e.operations.Change(entry)
	if !ok || c.Err != nil {
		return nil, nil, false
	}
	shown := func(rec *record) *api.Operation {
		if rec == nil {
			return nil
		}
		op := rec.operation(c.Key)
		return &op
	}
	return shown(c.Value), shown(c.Prev), true
}
