package host

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/network"
)

// The one network and pool of this release.
const (
	defaultNetwork = "default"
	defaultPool    = "default"
)

// Id ranges: each VE has 65536 user and group ids of its own, from 2^28 on. That is above the ranges that distributions
// give to users in /etc/subuid (100000 up to about 60 million) and below 2^31, where some tools turn negative.
const (
	idRangeSize  = 1 << 16
	idRangeFirst = 1 << 28
	idRangeCount = (1<<31 - idRangeFirst) / idRangeSize
)

// VE is the record of a VE in the store, under its name.
type VE struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Model       api.Model         `json:"model"`
	Host        string            `json:"host"`
	MovingTo    string            `json:"moving_to,omitempty"` // host that a move under way takes it to
	MemoryAt    string            `json:"memory_at,omitempty"` // host that its memory still follows it from
	Snapshot    string            `json:"snapshot,omitempty"`  // that it has come from
	Schedule    *schedule         `json:"schedule,omitempty"`  // of snapshots
	Image       string            `json:"image"`
	ImageDigest string            `json:"image_digest"`
	App         *api.ImageConfig  `json:"app,omitempty"`
	CPUs        int               `json:"cpus"`
	Memory      api.Bytes         `json:"memory_bytes"`
	Disk        api.Bytes         `json:"disk_bytes"`
	Labels      map[string]string `json:"labels,omitempty"`
	Restart     api.RestartPolicy `json:"restart"`
	Ephemeral   bool              `json:"ephemeral,omitempty"`
	Firmware    api.Firmware      `json:"firmware,omitempty"`
	UserData    string            `json:"user_data,omitempty"`
	Lease       network.Lease     `json:"lease"`
	IDRange     int               `json:"id_range"`
	CreatedAt   time.Time         `json:"created_at"`
	ExpiresAt   *time.Time        `json:"expires_at,omitempty"`

	UpdatedAt   time.Time  `json:"updated_at"`
	State       api.State  `json:"state"`
	Reason      string     `json:"reason,omitempty"`
	PID         int        `json:"pid,omitempty"`
	Accelerator string     `json:"accelerator,omitempty"`
	StartedAt   *time.Time `json:"started_at,omitempty"`
	Boot        string     `json:"boot,omitempty"` // of the host, in which the VE was started last; see boot.go
	// Ended is how the VE ended, from when that is settled until its restart policy has been heeded.
	Ended *model.Exit `json:"ended,omitempty"`
	// Restarts counts the starts by the restart policy since RestartsSince; see settle.go.
	Restarts      int        `json:"restarts,omitempty"`
	RestartsSince *time.Time `json:"restarts_since,omitempty"`
}

// claim says which VE holds an address or an id range. Claims are made and dropped in one transaction with the VE's record,
// so that two VEs can't hold the same one.
type claim struct {
	VE string `json:"ve"` // UUID
}

// shown is the record as the API shows it.
func (v VE) shown() api.VE {
	labels := v.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	var snapshots *api.SnapshotSchedule
	if v.Schedule != nil {
		snapshots = &v.Schedule.SnapshotSchedule
	}
	return api.VE{
		Name: v.Name, ID: v.ID, Model: v.Model, State: v.State, Reason: v.Reason, Host: v.Host, MovingTo: v.MovingTo,
		Image: v.Image, ImageDigest: v.ImageDigest, Addresses: v.addresses(),
		CPUs: v.CPUs, MemoryBytes: v.Memory, DiskBytes: v.Disk, Labels: labels,
		CreatedAt: v.CreatedAt, StartedAt: v.StartedAt, ExpiresAt: v.ExpiresAt, Schedule: snapshots, PID: v.PID,
		Restart: v.Restart, Restarts: v.Restarts, Ephemeral: v.Ephemeral, Firmware: v.Firmware, Accelerator: v.Accelerator,
		Pool: defaultPool,
	}
}

func (v VE) addresses() []api.Address {
	return []api.Address{
		{Network: defaultNetwork, MAC: v.Lease.MAC, Address: v.Lease.IPv4.String()},
		{Network: defaultNetwork, MAC: v.Lease.MAC, Address: v.Lease.IPv6.String()},
	}
}

// spec is the record as the model needs it, with the VE's volume on this host: api.NotFound when there is none.
func (h *Host) spec(ctx context.Context, v VE) (model.Spec, error) {
	vol, err := h.pool.Volume(ctx, v.ID)
	if err != nil {
		return model.Spec{}, fmt.Errorf("ve %q: %w", v.Name, err)
	}
	root := model.Root{Tree: vol.Path}
	switch {
	case v.Model == api.VM:
		root = model.Root{Disk: vol.Path, Format: vol.Format}
	case vol.Lower != "":
		root.Layers = &model.Layers{Lower: vol.Lower, Upper: vol.Upper, Work: vol.Work}
	}
	return h.specOn(v, root), nil
}

// placed is the model of a VE on this host, and what that needs to know.
func (h *Host) placed(ctx context.Context, v VE) (model.Model, model.Spec, error) {
	impl, err := h.modelOf(v.Model)
	if err != nil {
		return nil, model.Spec{}, err
	}
	spec, err := h.spec(ctx, v)
	return impl, spec, err
}

// specOn is spec with that root.
func (h *Host) specOn(v VE, root model.Root) model.Spec {
	return model.Spec{
		ID: v.ID, Name: v.Name, Dir: h.veDir(v.ID), Root: root,
		CPUs: v.CPUs, Memory: v.Memory,
		NICs: []model.NIC{h.nic(v)}, Plug: h.fabric,
		IDBase: uint32(idRangeFirst + v.IDRange*idRangeSize), IDCount: idRangeSize,
		App: v.App, CloudInit: cloudInit(v), Firmware: v.Firmware,
		Cgroup: "/polder/" + v.Name,
	}
}

func (h *Host) nic(v VE) model.NIC {
	gateways := []netip.Addr{h.network.IPv4.Addr(), h.network.IPv6.Addr()}
	return model.NIC{
		Network: defaultNetwork, Name: "eth0", HostName: network.HostName(v.ID, 0), MAC: v.Lease.MAC, MTU: h.network.MTU,
		Addresses: []netip.Prefix{v.Lease.IPv4, v.Lease.IPv6},
		Gateways:  gateways, DNS: gateways, Domain: h.network.Domain,
	}
}

// cloudInit is the VE's NoCloud data; the instance id is the VE's own UUID, so a clone counts as new.
func cloudInit(v VE) model.CloudInit {
	if v.UserData == "" {
		return model.CloudInit{}
	}
	return model.CloudInit{
		UserData: v.UserData,
		MetaData: "instance-id: " + v.ID + "\nlocal-hostname: " + v.Name + "\n",
	}
}

// get finds a VE's record.
func (h *Host) get(ctx context.Context, name string) (VE, error) {
	rec, err := h.ves.Get(ctx, name)
	if api.KindOf(err) == api.NotFound {
		return VE{}, api.Errorf(api.NotFound, "ve %q: no such VE (see: polder list)", name)
	}
	return rec.Value, err
}

// again is the record of a VE as it is now. Of one that was deleted it is api.NotFound, also when another one has its name.
func (h *Host) again(ctx context.Context, was VE) (VE, error) {
	v, err := h.get(ctx, was.Name)
	if err == nil && v.ID != was.ID {
		err = api.Errorf(api.NotFound, "ve %q: it was deleted, and another one made with its name", was.Name)
	}
	return v, err
}

// set changes a VE's record.
func (h *Host) set(ctx context.Context, name string, change func(*VE)) error {
	_, err := h.ves.Modify(ctx, name, func(v *VE) error {
		change(v)
		v.UpdatedAt = time.Now().UTC()
		return nil
	})
	return err
}

// usersOf names the VEs that were made from an image, and the templates of it.
func (h *Host) usersOf(ctx context.Context, digest string) ([]string, error) {
	recs, err := h.ves.List(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, rec := range recs {
		if rec.Value.ImageDigest == digest {
			names = append(names, rec.Value.Name)
		}
	}
	templates, err := h.templates.List(ctx)
	for _, rec := range templates {
		if rec.Value.Image == digest {
			names = append(names, "a template on host "+rec.Value.Host+" (polder image warm --off)")
		}
	}
	return names, err
}

// publishLeases makes DHCP and DNS answer for all VEs on the network.
func (h *Host) publishLeases(ctx context.Context) error {
	return h.fabric.SetLeases(ctx, h.network, func(ctx context.Context) ([]network.Lease, error) {
		recs, err := h.ves.List(ctx)
		leases := make([]network.Lease, len(recs))
		for i, rec := range recs {
			leases[i] = rec.Value.Lease
		}
		return leases, err
	})
}

func idRangeKey(n int) string { return strconv.Itoa(n) }
