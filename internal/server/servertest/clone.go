package servertest

import (
	"context"
	"encoding/json"

	"polder/api"
)

// Clone implements server.Backend.
func (b *Backend) Clone(_ context.Context, name string, req api.CloneRequest) (api.Operation, error) {
	names, err := req.Names()
	if err != nil {
		return api.Operation{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	ve, err := b.ve(name)
	switch {
	case err != nil:
		return api.Operation{}, err
	case req.Snapshot != "" && b.snapshotAt(name, req.Snapshot) < 0:
		return api.Operation{}, api.Errorf(api.NotFound, "clone ve %q: ve %q has no snapshot %q", name, name, req.Snapshot)
	case req.Snapshot == "" && req.Live != (ve.State == api.Running):
		return api.Operation{}, api.Errorf(api.Precondition, "clone ve %q: it is %s", name, ve.State)
	}
	for _, name := range names {
		if _, taken := b.ves[name]; taken {
			return api.Operation{}, api.Errorf(api.Exists, "clone ve %q: a VE named %q exists already", ve.Name, name)
		}
	}
	var record *operation
	op := b.start("clone", "ve/"+name, ve.Labels["clone"], func() {
		result := api.CloneResult{StoodMS: 30, RestoredMS: 90, ReadyMS: 200}
		for _, name := range names {
			v := ve
			v.Name, v.ID, v.Ephemeral = name, name+"-id", req.Ephemeral
			if v.State = api.Stopped; req.Live || req.Start {
				v.State = api.Running
			}
			b.ves[name] = v
			result.VEs = append(result.VEs, v)
		}
		record.Result, _ = json.Marshal(result)
	})
	record = b.ops[len(b.ops)-1] // the effect comes later: mu is held until here
	return op, nil
}
