package host

import (
	"context"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"polder/api"
	"polder/internal/model"
)

// adoptAtOnce bounds how many VEs are looked at in parallel at the start.
const adoptAtOnce = 16

// endedUnseen is the end of a VE that nobody watched and that left no word.
var endedUnseen = model.Exit{Crashed: true, Reason: "ended while the daemon was not running"}

// adopt finds the VEs of this host that run, and watches them. lost are those that should run and don't, with what is
// known of their end. VEs that an operation in flight owns are left to it.
func (h *Host) adopt(ctx context.Context, owned map[string]bool) (adopted int, lost map[string]model.Exit, err error) {
	recs, err := h.ves.List(ctx)
	if err != nil {
		return 0, nil, err
	}
	lost = map[string]model.Exit{}
	var mu sync.Mutex // guards adopted and lost
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(adoptAtOnce)
	for _, rec := range recs {
		v := rec.Value
		if v.Host != h.cfg.Name || owned[v.Name] || v.State == api.Stopped || v.State == api.Failed {
			continue
		}
		group.Go(func() error {
			ok, err := h.adoptVE(ctx, v)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				h.log.Error("a ve could not be adopted", "ve", v.Name, "error", err)
			case ok:
				adopted++
			default:
				lost[v.Name] = h.ended(ctx, v)
			}
			return nil
		})
	}
	return adopted, lost, group.Wait()
}

// owned are the VEs that operations in flight act on.
func (h *Host) owned(ctx context.Context) (map[string]bool, error) {
	keys, err := h.engine.Held(ctx)
	if err != nil {
		return nil, err
	}
	owned := map[string]bool{}
	for _, key := range keys {
		if name, ok := strings.CutPrefix(key, "ve/"); ok {
			owned[name] = true
		}
	}
	return owned, nil
}

func (h *Host) adoptVE(ctx context.Context, v VE) (bool, error) {
	impl, spec, err := h.placed(ctx, v)
	if err != nil {
		return false, err
	}
	p, paused, ok, err := impl.Adopt(ctx, spec)
	if err != nil || !ok {
		return false, err
	}
	state := api.Running
	if paused {
		state = api.Paused
	}
	if v.State != state || v.PID != p.PID {
		if err := h.set(ctx, v.Name, func(v *VE) { v.State, v.PID = state, p.PID }); err != nil {
			return false, err
		}
	}
	h.watch(v.Name, p)
	return true, nil
}

// adoptLater adopts a VE once the operation that owns it has ended; one that does not run then is settled.
func (h *Host) adoptLater(name string) {
	h.waitFor(name)
	v, err := h.get(h.ctx, name)
	if err == nil && v.Host != h.cfg.Name {
		return
	}
	if err == nil && v.Ended != nil {
		h.restart(name, *v.Ended)
		return
	}
	if err != nil || v.State != api.Running && v.State != api.Paused {
		return
	}
	switch ok, err := h.adoptVE(h.ctx, v); {
	case err != nil:
		h.log.Error("a ve could not be adopted", "ve", name, "error", err)
	case !ok:
		h.settle(name, h.ended(h.ctx, v))
	}
}

// restartsDue are the VEs whose end was settled, but not yet their restart, when the daemon stopped.
func (h *Host) restartsDue(ctx context.Context, owned map[string]bool) (map[string]model.Exit, error) {
	recs, err := h.ves.List(ctx)
	if err != nil {
		return nil, err
	}
	due := map[string]model.Exit{}
	for _, rec := range recs {
		if v := rec.Value; v.Host == h.cfg.Name && v.Ended != nil && !owned[v.Name] {
			due[v.Name] = *v.Ended
		}
	}
	return due, nil
}

// ended says how a VE ended that nobody watched, as far as its model can tell.
func (h *Host) ended(ctx context.Context, v VE) model.Exit {
	if v.Boot != h.boot {
		return hostWentDown
	}
	impl, err := h.modelOf(v.Model)
	if err != nil {
		return endedUnseen
	}
	ender, ok := impl.(model.Ender)
	if !ok {
		return endedUnseen
	}
	spec, err := h.spec(ctx, v)
	if err != nil {
		return endedUnseen
	}
	if exit, ok := ender.Ended(spec); ok {
		return exit
	}
	return endedUnseen
}
