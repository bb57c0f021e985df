package host

import (
	"context"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"polder/api"
	"polder/internal/hardware"
	"polder/internal/image"
	"polder/internal/model"
	"polder/internal/operation"
)

// clone is the state of the operation "clone". It is the source's; the new VEs are locked beside it.
type clone struct {
	From   VE              `json:"from"`
	New    []VE            `json:"new"`
	Live   bool            `json:"live,omitempty"`
	Of     *snapshot       `json:"of,omitempty"` // that they begin as
	Start  bool            `json:"start,omitempty"`
	At     time.Time       `json:"at,omitzero"` // when it was frozen
	Result api.CloneResult `json:"result,omitzero"`
}

type cloneRun = operation.Run[clone]

// forksAtOnce bounds how many forks come to life side by side.
const forksAtOnce = 4

// Clone makes VEs of a stopped one, or forks one that runs.
func (h *Host) Clone(ctx context.Context, name string, req api.CloneRequest) (api.Operation, error) {
	state, err := h.planClone(ctx, name, req)
	if err != nil {
		return api.Operation{}, fmt.Errorf("clone ve %q: %w", name, err)
	}
	locks := []operation.Lock{{Key: "image/" + state.From.ImageDigest, Shared: true}}
	for _, v := range state.New {
		locks = append(locks, operation.Lock{Key: "ve/" + v.Name})
	}
	return operation.Start(ctx, h.engine, "clone", operation.Request{Target: "ve/" + name, Host: state.From.Host, Locks: locks}, state)
}

// planClone checks a request. Nothing is changed yet.
func (h *Host) planClone(ctx context.Context, name string, req api.CloneRequest) (clone, error) {
	v, err := h.get(ctx, name)
	if err != nil {
		return clone{}, err
	}
	names, err := req.Names()
	if err != nil {
		return clone{}, err
	}
	if _, err := h.cluster.Reachable(ctx, v.Host); err != nil {
		return clone{}, err
	}
	state := clone{From: v, Live: req.Live, Start: req.Start || req.Live}
	switch {
	case req.Snapshot != "":
		s, err := h.snapshotOf(ctx, v, req.Snapshot)
		if err != nil {
			return clone{}, err
		}
		if req.Live && !s.Memory {
			return clone{}, api.Errorf(api.Precondition, "snapshot %q is without memory: without --live its disk is cloned", s.Name)
		}
		state.Of = &s
	case req.Live && v.State != api.Running:
		return clone{}, api.Errorf(api.Precondition, "it is %s: only one that runs can be forked; without --live it is cloned as it is on its disk", v.State)
	case !req.Live && v.State != api.Stopped && v.State != api.Failed:
		return clone{}, api.Errorf(api.Precondition, "it is %s: stop it first, or fork it with --live", v.State)
	}
	if req.Live {
		if err := h.canFork(v.Model); err != nil {
			return clone{}, err
		}
	}
	now := time.Now().UTC()
	expires, err := expiry(now, req.TTLSeconds)
	if err != nil {
		return clone{}, err
	}
	for _, name := range names {
		if _, err := h.get(ctx, name); err == nil {
			return clone{}, api.Errorf(api.Exists, "a VE named %q exists already: choose another name, or polder delete %s", name, name)
		}
		labels := maps.Clone(v.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, req.Labels)
		state.New = append(state.New, VE{
			ID: uuid.NewString(), Name: name, Host: v.Host, Image: v.Image, ImageDigest: v.ImageDigest, App: v.App,
			Model: v.Model, CPUs: v.CPUs, Memory: v.Memory, Disk: v.Disk, Labels: labels, Restart: v.Restart, Ephemeral: req.Ephemeral,
			Firmware: v.Firmware, UserData: v.UserData, CreatedAt: now, ExpiresAt: expires, UpdatedAt: now, State: api.Starting,
		})
	}
	return state, nil
}

// cloneDefinition has the steps of "clone"; each undo also copes with a step that never ran. What was frozen is in memory only: after
// a crash of the daemon all is taken back.
func (h *Host) cloneDefinition() operation.Definition[clone] {
	return operation.Definition[clone]{
		Kind: "clone", AfterCrash: operation.Undo, PointOfNoReturn: "tidy",
		Steps: []operation.Step[clone]{
			{Name: "reserve", Do: h.reserveClones, Undo: h.unreserveClones},
			{Name: "freeze", Do: h.freezeSource, Undo: h.thawSource},
			{Name: "volumes", Do: h.copyVolumes, Undo: h.eachClone(func(ctx context.Context, v VE) error { return h.pool.Delete(ctx, v.ID) })},
			{Name: "fork", Do: h.forkClones, Undo: h.eachClone(h.tearDown)},
			{Name: "start", Do: h.startClones, Undo: h.eachClone(h.tearDown)},
			{Name: "tidy", Do: h.thawSource},
		},
	}
}

func (h *Host) eachClone(do func(context.Context, VE) error) func(context.Context, *cloneRun) error {
	return func(ctx context.Context, r *cloneRun) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(forksAtOnce)
		var done sync.Mutex
		n := 0
		for _, v := range r.State.New {
			group.Go(func() error {
				if err := do(ctx, v); err != nil {
					return fmt.Errorf("ve %q: %w", v.Name, err)
				}
				done.Lock()
				defer done.Unlock()
				n++
				r.Progress(int64(n), int64(len(r.State.New)), "items")
				return nil
			})
		}
		return group.Wait()
	}
}

func (h *Host) reserveClones(ctx context.Context, r *cloneRun) error {
	if err := h.roomForForks(r); err != nil {
		return err
	}
	for i := range r.State.New {
		if err := h.reserveVE(ctx, &r.State.New[i]); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) unreserveClones(ctx context.Context, r *cloneRun) error {
	for _, v := range r.State.New {
		if err := h.forget(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// frozenVolume is the id of the copy that was taken when the source stood still.
func frozenVolume(r *cloneRun) string { return "frozen-" + r.ID }

// freezeSource takes the running source's memory and volume at one moment, or those of a snapshot.
func (h *Host) freezeSource(ctx context.Context, r *cloneRun) error {
	if !r.State.Live {
		return nil
	}
	v, forker, spec, err := h.forker(ctx, r)
	if err != nil {
		return err
	}
	if s := r.State.Of; s != nil {
		r.State.At = time.Now()
		frozen, err := forker.OpenFrozen(h.snapshotDir(*s))
		if err != nil {
			return err
		}
		h.frozen.Store(r.ID, frozen)
		return nil
	}
	if v.State != api.Running {
		return api.Errorf(api.Precondition, "ve %q is %s", v.Name, v.State)
	}
	r.State.At = time.Now()
	frozen, err := forker.Freeze(ctx, spec, func(ctx context.Context) error {
		_, err := h.pool.Copy(ctx, v.ID, frozenVolume(r))
		return err
	})
	if err != nil {
		return err
	}
	h.frozen.Store(r.ID, frozen)
	r.State.Result.StoodMS = frozen.Stood().Milliseconds()
	return nil
}

// thawSource gives back what was frozen; the source goes on, if it does not already.
func (h *Host) thawSource(ctx context.Context, r *cloneRun) error {
	if !r.State.Live {
		return nil
	}
	if frozen, ok := h.frozen.LoadAndDelete(r.ID); ok {
		if err := frozen.(model.Frozen).Close(); err != nil {
			return err
		}
	}
	if r.State.Of != nil {
		return nil
	}
	if err := h.pool.Delete(ctx, frozenVolume(r)); err != nil {
		return err
	}
	_, forker, spec, err := h.forker(ctx, r)
	if api.KindOf(err) == api.NotFound { // it was deleted
		return nil
	} else if err != nil {
		return err
	}
	return forker.Thaw(ctx, spec)
}

// forker is the source as its model sees it.
func (h *Host) forker(ctx context.Context, r *cloneRun) (VE, model.Forker, model.Spec, error) {
	v, err := h.get(ctx, r.State.From.Name)
	if err != nil {
		return v, nil, model.Spec{}, err
	}
	impl, spec, err := h.placed(ctx, v)
	if err != nil {
		return v, nil, spec, err
	}
	return v, impl.(model.Forker), spec, nil
}

func (h *Host) copyVolumes(ctx context.Context, r *cloneRun) error {
	from := r.State.From.ID
	switch s := r.State.Of; {
	case s != nil:
		from = s.volume()
	case r.State.Live:
		from = frozenVolume(r)
	}
	return h.eachClone(func(ctx context.Context, v VE) error {
		vol, err := h.pool.Copy(ctx, from, v.ID)
		if err != nil || r.State.Live || v.Model != api.VM {
			return err // a fork gets its identity from inside, a container at its start
		}
		return image.ForgetIdentity(ctx, vol.Path, vol.Format)
	})(ctx, r)
}

// forkClones makes forks of what was frozen; they stand still.
func (h *Host) forkClones(ctx context.Context, r *cloneRun) error {
	if !r.State.Live {
		return nil
	}
	from, err := h.frozenBy(r)
	if err != nil {
		return err
	}
	err = h.eachClone(func(ctx context.Context, v VE) error {
		impl, spec, err := h.placed(ctx, v)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(spec.Dir, 0o711); err != nil {
			return err
		}
		p, err := impl.(model.Forker).Fork(ctx, spec, from)
		if err != nil {
			return err
		}
		return h.started(ctx, v, p)
	})(ctx, r)
	r.State.Result.RestoredMS = time.Since(r.State.At).Milliseconds()
	return err
}

func (h *Host) frozenBy(r *cloneRun) (model.Frozen, error) {
	if from, ok := h.frozen.Load(r.ID); ok {
		return from.(model.Frozen), nil
	}
	return nil, api.Errorf(api.Internal, "what was frozen is gone")
}

// startClones lets the forks go on, or starts the clones if that was asked for.
func (h *Host) startClones(ctx context.Context, r *cloneRun) error {
	do := func(ctx context.Context, v VE) error {
		return h.set(ctx, v.Name, func(v *VE) { v.State = api.Stopped })
	}
	switch {
	case r.State.Live:
		from, err := h.frozenBy(r)
		if err != nil {
			return err
		}
		do = func(ctx context.Context, v VE) error {
			impl, spec, err := h.placed(ctx, v)
			if err != nil {
				return err
			}
			return impl.(model.Forker).Wake(ctx, spec, from)
		}
	case r.State.Start:
		do = h.startVE
	}
	if err := h.eachClone(do)(ctx, r); err != nil {
		return err
	}
	result := r.State.Result
	if r.State.Live {
		result.ReadyMS = time.Since(r.State.At).Milliseconds()
	}
	for _, v := range r.State.New {
		v, err := h.get(ctx, v.Name)
		if err != nil {
			return err
		}
		result.VEs = append(result.VEs, v.shown())
	}
	r.Result(result)
	return nil
}

// leastFork is what a fork takes at once, of memory that it does not share with others.
const leastFork = 96 * api.MiB

// roomForForks refuses forks that this host has no memory for, before the others feel it.
func (h *Host) roomForForks(r *cloneRun) error {
	if !r.State.Live {
		return nil
	}
	n := api.Bytes(len(r.State.New))
	free, err := hardware.MemoryAvailable()
	if need := n * min(leastFork, r.State.From.Memory); err == nil && need > free {
		return api.Errorf(api.Exhausted, "%d forks take %v of memory at least, host %q has %v available: make fewer, or move VEs away", n, need, h.cfg.Name, free)
	}
	return nil
}
