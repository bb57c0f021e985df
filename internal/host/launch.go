package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/cluster"
	"polder/internal/image"
	"polder/internal/model"
	"polder/internal/network"
	"polder/internal/operation"
	"polder/internal/store"
)

// What a launch gets when it does not say.
const (
	defaultCPUs   = 1
	defaultMemory = 512 * api.MiB
	defaultDisk   = 10 * api.GiB
)

// leastMemory below which the model's VEs can't even begin to boot.
var leastMemory = map[api.Model]api.Bytes{api.Container: 8 * api.MiB, api.VM: 64 * api.MiB}

// launch is the state of the operation "launch".
type launch struct {
	VE      VE   `json:"ve"`
	NoStart bool `json:"no_start,omitempty"`
	// Template that the VE becomes a fork of; nil: it boots.
	Template *template `json:"template,omitempty"`
}

// Launch makes a VE of an image and starts it.
func (h *Host) Launch(ctx context.Context, req api.LaunchRequest) (api.Operation, error) {
	img, v, err := h.planLaunch(ctx, req)
	if err != nil {
		return api.Operation{}, fmt.Errorf("launch %q: %w", req.Name, err)
	}
	return operation.Start(ctx, h.engine, "launch", operation.Request{
		Target: "ve/" + v.Name, Host: v.Host,
		Locks: []operation.Lock{{Key: "image/" + img.Digest, Shared: true}},
	}, launch{VE: v, NoStart: req.NoStart})
}

// planLaunch checks a request and fills in what it leaves open. Nothing is changed yet.
func (h *Host) planLaunch(ctx context.Context, req api.LaunchRequest) (api.Image, VE, error) {
	var none api.Image
	if err := api.CheckName("ve", req.Name); err != nil {
		return none, VE{}, err
	}
	if _, err := h.get(ctx, req.Name); err == nil {
		return none, VE{}, api.Errorf(api.Exists, "a VE of that name exists already: choose another name, or polder delete %s", req.Name)
	} else if api.KindOf(err) != api.NotFound {
		return none, VE{}, err
	}
	on, err := h.cluster.Reachable(ctx, cmp.Or(req.Host, h.cfg.Name))
	if err != nil {
		return none, VE{}, err
	}
	if on.Role == api.RoleWitness {
		return none, VE{}, api.Errorf(api.Precondition, "host %q is a witness: it runs no VEs", on.Name)
	}
	if req.Pool != "" && req.Pool != defaultPool {
		return none, VE{}, api.Errorf(api.NotFound, "pool %q: no such pool (see: polder pool list)", req.Pool)
	}
	v := VE{
		ID: uuid.NewString(), Name: req.Name, Host: on.Name, Image: req.Image,
		Model: cmp.Or(req.Model, api.Container), CPUs: cmp.Or(req.CPUs, defaultCPUs), Memory: cmp.Or(req.MemoryBytes, defaultMemory),
		Disk: req.DiskBytes, Labels: maps.Clone(req.Labels), Restart: cmp.Or(req.Restart, api.RestartOnFailure), Ephemeral: req.Ephemeral,
		UserData: req.UserData, CreatedAt: time.Now().UTC(), State: api.Starting,
	}
	v.UpdatedAt = v.CreatedAt
	if v.ExpiresAt, err = expiry(v.CreatedAt, req.TTLSeconds); err != nil {
		return none, VE{}, err
	}
	if _, err := h.modelOf(v.Model); err != nil {
		return none, VE{}, err
	}
	img, err := h.images.Resolve(ctx, req.Image)
	if err != nil {
		return none, VE{}, err
	}
	v.ImageDigest, v.App = img.Digest, img.Config
	if err := checkSize(&v, img, on); err != nil {
		return none, VE{}, err
	}
	return img, v, checkFit(&v, img, req)
}

// checkFit says whether the image can do what is asked.
func checkFit(v *VE, img api.Image, req api.LaunchRequest) error {
	if !slices.Contains(img.Models, v.Model) {
		return api.Errorf(api.Unsupported, "image %q can't run as a %s: %s", req.Image, v.Model, lacking(img, v.Model))
	}
	if req.UserData != "" && !img.CloudInit && img.Provenance.Method != "disk" {
		return api.Errorf(api.Precondition, "image %q has no cloud-init for the user-data: build one with polder image build … --cloud-init", req.Image)
	}
	switch {
	case v.Model == api.VM:
		v.Firmware = cmp.Or(req.Firmware, api.BIOS)
		if v.Firmware != api.BIOS && v.Firmware != api.UEFI {
			return api.Errorf(api.Invalid, "firmware %q: want bios or uefi", v.Firmware)
		}
	case req.Firmware != "":
		return api.Errorf(api.Invalid, "firmware %q: only a vm has firmware", req.Firmware)
	}
	switch v.Restart {
	case api.RestartNever, api.RestartOnFailure, api.RestartAlways:
		return nil
	}
	return api.Errorf(api.Invalid, "restart policy %q: want never, on-failure or always", v.Restart)
}

// lacking says what an image would need to run under a model.
func lacking(img api.Image, m api.Model) string {
	if m == api.VM && img.Config != nil {
		return "it is an application without a kernel; launch it as a container"
	}
	if m == api.VM {
		return "it has no disk that could boot, for it has no kernel or no init; launch it as a container"
	}
	return fmt.Sprintf("it runs as %v", img.Models)
}

// checkSize settles CPUs, memory and disk against the image and the host.
func checkSize(v *VE, img api.Image, on cluster.Status) error {
	least := leastMemory[v.Model]
	switch {
	case v.CPUs < 1 || v.CPUs > on.CPUs:
		return api.Errorf(api.Invalid, "%d cpus: host %q has %d; want 1 to %d", v.CPUs, on.Name, on.CPUs, on.CPUs)
	case v.Memory < least:
		return api.Errorf(api.Invalid, "memory %v is too little for a %s: want at least %v", v.Memory, v.Model, least)
	case v.Memory > on.Memory:
		return api.Errorf(api.Exhausted, "memory %v is more than host %q has (%v)", v.Memory, on.Name, on.Memory)
	case v.Disk < 0:
		return api.Errorf(api.Invalid, "disk %d bytes: want a positive size", v.Disk)
	}
	needed := img.SizeBytes
	if v.Model == api.VM {
		needed = img.DiskBytes
	}
	switch {
	case v.Disk == 0:
		v.Disk = max(defaultDisk, needed)
	case v.Disk < needed:
		return api.Errorf(api.Invalid, "disk %v is smaller than the image %q, which needs %v: leave --disk out or give at least that", v.Disk, v.Image, needed)
	}
	if v.Model == api.VM {
		v.Disk = (v.Disk + api.MiB - 1) / api.MiB * api.MiB // QEMU and partition tables want whole sectors
	}
	return nil
}

// launchSteps are the steps of "launch"; each undo also copes with a step that never ran.
func (h *Host) launchSteps() []operation.Step[launch] {
	return []operation.Step[launch]{
		{Name: "image", Do: h.fetchImage},
		{Name: "reserve", Do: h.reserve, Undo: h.unreserve},
		{Name: "volume", Do: h.makeVolume, Undo: func(ctx context.Context, r *operation.Run[launch]) error {
			return h.pool.Delete(ctx, r.State.VE.ID)
		}},
		{Name: "start", Do: h.launchStart, Undo: func(ctx context.Context, r *operation.Run[launch]) error {
			return h.tearDown(ctx, r.State.VE)
		}},
	}
}

// fetchImage makes the image be in this host's pool.
func (h *Host) fetchImage(ctx context.Context, r *operation.Run[launch]) error {
	if t, ok := h.templateFor(ctx, r.State.VE); ok && !r.State.NoStart {
		r.State.Template = &t
	}
	return h.images.Ensure(ctx, r.State.VE.ImageDigest, transferOf(r.State.VE).Kind, r.Progress)
}

// reserve writes the VE's record.
func (h *Host) reserve(ctx context.Context, r *operation.Run[launch]) error {
	return h.reserveVE(ctx, &r.State.VE)
}

// reserveVE writes a VE's record with its address and id range, all or nothing. Others may be reserving at the same time, so a
// claim that was lost is taken anew. Idempotent: a VE that is there already becomes what its record says.
func (h *Host) reserveVE(ctx context.Context, ve *VE) error {
	if rec, err := h.ves.Get(ctx, ve.Name); err == nil {
		if rec.Value.ID != ve.ID {
			return api.Errorf(api.Exists, "ve %q: a VE of that name exists already", ve.Name)
		}
		*ve = rec.Value // resumed
		return h.publishLeases(ctx)
	}
	for {
		v := *ve
		if err := h.choose(ctx, &v); err != nil {
			return err
		}
		held := claim{VE: v.ID}
		_, err := h.store.Txn(ctx,
			h.ves.OpCreate(v.Name, v),
			h.addresses.OpCreate(v.Lease.IPv4.Addr().String(), held),
			h.addresses.OpCreate(v.Lease.IPv6.Addr().String(), held),
			h.idRanges.OpCreate(idRangeKey(v.IDRange), held),
		)
		switch kind := api.KindOf(err); {
		case err == nil:
			*ve = v
			return h.publishLeases(ctx)
		case kind != api.Exists && kind != api.Conflict, ctx.Err() != nil:
			return err
		}
		if _, taken := h.ves.Get(ctx, v.Name); taken == nil {
			return api.Errorf(api.Exists, "ve %q: a VE of that name exists already", v.Name)
		}
	}
}

// choose picks a free lease and id range.
func (h *Host) choose(ctx context.Context, v *VE) error {
	lease, err := h.freeLease(ctx, v.ID)
	if err != nil {
		return err
	}
	lease.Name = v.Name
	v.Lease = lease
	ranges, err := h.idRanges.List(ctx)
	if err != nil {
		return err
	}
	used := make(map[string]bool, len(ranges))
	for _, rec := range ranges {
		used[rec.Key] = true
	}
	for n := range idRangeCount {
		if !used[idRangeKey(n)] {
			v.IDRange = n
			return nil
		}
	}
	return api.Errorf(api.Exhausted, "all %d id ranges are taken: delete VEs that are no longer needed", idRangeCount)
}

// freeLease picks addresses that nobody has claimed.
func (h *Host) freeLease(ctx context.Context, id string) (network.Lease, error) {
	addresses, err := h.addresses.List(ctx)
	if err != nil {
		return network.Lease{}, err
	}
	taken := make(map[netip.Addr]bool, len(addresses))
	for _, rec := range addresses {
		if addr, err := netip.ParseAddr(rec.Key); err == nil {
			taken[addr] = true
		}
	}
	return network.Allocate(h.network, taken, id)
}

func (h *Host) unreserve(ctx context.Context, r *operation.Run[launch]) error {
	return h.forget(ctx, r.State.VE)
}

// forget drops a VE's record and claims, if they are that VE's.
func (h *Host) forget(ctx context.Context, v VE) error {
	rec, err := h.ves.Get(ctx, v.Name)
	switch {
	case api.KindOf(err) == api.NotFound || err == nil && rec.Value.ID != v.ID:
		return nil
	case err != nil:
		return err
	}
	ops := []store.Op{h.ves.OpDelete(rec)}
	for _, key := range []string{rec.Value.Lease.IPv4.Addr().String(), rec.Value.Lease.IPv6.Addr().String()} {
		if c, err := h.addresses.Get(ctx, key); err == nil && c.Value.VE == v.ID {
			ops = append(ops, h.addresses.OpDelete(c))
		}
	}
	if c, err := h.idRanges.Get(ctx, idRangeKey(rec.Value.IDRange)); err == nil && c.Value.VE == v.ID {
		ops = append(ops, h.idRanges.OpDelete(c))
	}
	if _, err := h.store.Txn(ctx, ops...); err != nil {
		return err
	}
	return h.publishLeases(ctx)
}

// makeVolume makes the VE's volume as a copy-on-write child of the image.
func (h *Host) makeVolume(ctx context.Context, r *operation.Run[launch]) error {
	v := r.State.VE
	if r.State.Template != nil {
		return nil // forkFrom makes it
	}
	vol, err := h.pool.Clone(ctx, baseOf(v), transferOf(v).Kind, v.ID, v.Disk)
	if err != nil || v.Model != api.VM {
		return err
	}
	return image.PrepareDisk(ctx, vol.Path, vol.Format, v.Disk)
}

func (h *Host) launchStart(ctx context.Context, r *operation.Run[launch]) error {
	v := r.State.VE
	if r.State.NoStart {
		return h.set(ctx, v.Name, func(v *VE) { v.State = api.Stopped })
	}
	if err := h.startNew(ctx, r); err != nil {
		return err
	}
	v, err := h.get(ctx, v.Name)
	if err != nil {
		return err
	}
	shown := v.shown()
	shown.FromTemplate = r.State.Template != nil
	r.Result(shown)
	return nil
}

// startNew starts a new VE: as a fork of a template, or by a boot. A template that can't be used (of an older QEMU, say) is no reason to
// fail: it boots then, and the daemon's log says why.
func (h *Host) startNew(ctx context.Context, r *operation.Run[launch]) error {
	v := r.State.VE
	if r.State.Template == nil {
		return h.startVE(ctx, v)
	}
	err := h.forkFrom(ctx, v, h.templateDir(*r.State.Template), r.State.Template.volume())
	if err == nil || ctx.Err() != nil {
		return err
	}
	r.Log().Warn("an image's template can't be used, the ve boots: make it anew with polder image warm", "ve", v.Name, "image", v.Image, "error", err)
	r.State.Template = nil
	if err := errors.Join(h.tearDown(ctx, v), h.pool.Delete(ctx, v.ID)); err != nil {
		return err
	}
	if err := h.makeVolume(ctx, r); err != nil {
		return err
	}
	return h.startVE(ctx, v)
}

// startVE prepares and starts a VE and writes down that it runs. Idempotent.
func (h *Host) startVE(ctx context.Context, v VE) error {
	impl, spec, err := h.placed(ctx, v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(spec.Dir, 0o711); err != nil {
		return fmt.Errorf("start ve %q: %w", v.Name, err)
	}
	if err := impl.Prepare(ctx, spec); err != nil {
		return err
	}
	p, err := impl.Start(ctx, spec)
	if err != nil {
		return err
	}
	return h.started(ctx, v, p)
}

// started writes down that a VE runs, and watches it.
func (h *Host) started(ctx context.Context, v VE, p model.Process) error {
	now := time.Now().UTC()
	err := h.set(ctx, v.Name, func(v *VE) {
		v.State, v.Reason, v.PID, v.Accelerator, v.StartedAt = api.Running, "", p.PID, p.Accelerator, &now
		v.Boot, v.Ended = h.boot, nil
	})
	if err != nil {
		return err
	}
	h.watch(v.Name, p)
	return nil
}

// tearDown removes all that startVE made on this host. Idempotent, also for a VE that never started.
func (h *Host) tearDown(ctx context.Context, v VE) error {
	if err := h.takeDown(ctx, v); err != nil {
		return err
	}
	return os.RemoveAll(h.veDir(v.ID))
}

// takeDown is tearDown without the VE's directory.
func (h *Host) takeDown(ctx context.Context, v VE) error {
	impl, err := h.modelOf(v.Model)
	if err != nil {
		return err
	}
	spec, err := h.spec(ctx, v)
	switch api.KindOf(err) {
	case "":
	case api.NotFound: // no volume: it never ran, or a deletion is being resumed
		spec = h.specOn(v, model.Root{})
	default:
		return err
	}
	if _, err := os.Stat(spec.Dir); err == nil {
		if err := impl.Stop(ctx, spec, 0); err != nil {
			return err
		}
		if err := impl.Remove(ctx, spec); err != nil {
			return err
		}
	}
	return nil
}
