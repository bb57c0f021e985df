// Package host is the agent of one host: it turns what the store says about VEs into running VEs, and keeps the store true
// when a VE ends by itself.
//
// It owns the VE records, their addresses and id ranges, and the operations on them (launch, start, stop, restart, pause,
// resume, settle, move, clone, delete). It does not know how a container or a VM is run (package model and below), how a volume is made
// (storage), or what the wire looks like (server).
//
// # Concurrency
//
// Whoever changes a VE does so inside an operation whose target is that VE: the operation's lock is the ownership, and it
// holds across a crash of the daemon. Outside of operations a VE is only read. When a VE ends by itself, its watcher starts
// the operation "settle", so that a crash, too, is handled by the one owner.
//
// # Start
//
// Up brings the network up, adopts the VEs that run, resumes or undoes the operations in flight, and settles what ended
// meanwhile.
//
// # Other hosts
//
// All records are the cluster's. This host acts on VEs whose record names it, and hands everything else to the host that
// it names. A move has two ends (move_copy.go at the source, arrival.go and move_enter.go at the target); one record says
// whose the VE is, and each host sweeps away what it has of VEs that are another's (sweep.go).
package host

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/cluster"
	"polder/internal/hardware"
	"polder/internal/image"
	"polder/internal/model"
	"polder/internal/network"
	"polder/internal/operation"
	"polder/internal/storage"
	"polder/internal/store"
)

// Config says where and what this host is.
type Config struct {
	Name    string // of the host
	Data    string // directory for everything that must outlive a reboot; absolute, at most 40 bytes
	Run     string // directory for what must not
	Version string
	Log     *slog.Logger
}

// Parts are the pieces a host is assembled from; cmd-side code builds them explicitly.
type Parts struct {
	Store   *store.Store
	Engine  *operation.Engine
	Cluster *cluster.Cluster
	Pool    storage.Pool
	Fabric  *network.Fabric
	Models  map[api.Model]model.Model
}

// Host is the agent. Safe for concurrent use.
type Host struct {
	cfg     Config
	log     *slog.Logger
	store   *store.Store
	engine  *operation.Engine
	cluster *cluster.Cluster
	pool    storage.Pool
	fabric  *network.Fabric
	models  map[api.Model]model.Model
	images  *image.Library

	ves       *store.Table[VE]
	snapshots *store.Table[snapshot]
	templates *store.Table[template]
	addresses *store.Table[claim]
	ports     *store.Table[network.Lease] // of the hosts themselves, by their names
	idRanges  *store.Table[claim]
	networks  *store.Table[network.Config]
	network   network.Config
	encrypted atomic.Bool   // what goes between hosts; network has what it was when this host came up
	port      network.Lease // this host's own in the network
	inv       hardware.Inventory
	boot      string // which boot of the host this is

	ctx      context.Context // ends with Close; watchers and delayed restarts live under it
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	arrivals *arrivals
	sweeping *sweeper
	probes   *probes
	turns    *turns
	haste    *haste
	// frozen holds what clones under way have frozen: operation → model.Frozen.
	frozen sync.Map
	// watched holds the pids whose end a goroutine waits for.
	watched sync.Map

	capabilities func(context.Context) []api.Capability // of the host
	abilities    map[api.Model]func(context.Context) []api.Capability
}

// New assembles the host and tells the engine what it can do. Nothing runs before Up.
func New(cfg Config, parts Parts) (*Host, error) {
	h := &Host{
		cfg: cfg, log: cfg.Log,
		store: parts.Store, engine: parts.Engine, cluster: parts.Cluster, pool: parts.Pool, fabric: parts.Fabric, models: parts.Models,
		arrivals: newArrivals(), sweeping: newSweeper(), probes: newProbes(), turns: newTurns(), haste: newHaste(),
		ves:       store.NewTable[VE](parts.Store, "ve", 1),
		snapshots: store.NewTable[snapshot](parts.Store, "snapshot", 1),
		templates: store.NewTable[template](parts.Store, "template", 1),
		addresses: store.NewTable[claim](parts.Store, "address", 1),
		ports:     store.NewTable[network.Lease](parts.Store, "port", 1),
		idRanges:  store.NewTable[claim](parts.Store, "idrange", 1),
		networks:  store.NewTable[network.Config](parts.Store, "network", 1),
	}
	var err error
	if h.inv, err = hardware.Take(); err != nil {
		return nil, fmt.Errorf("host %q: %w", cfg.Name, err)
	}
	if h.boot, err = bootOf(); err != nil {
		return nil, fmt.Errorf("host %q: %w", cfg.Name, err)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.capabilities = remembered(func(ctx context.Context) []api.Capability { return hardware.CapabilitiesAt(ctx, cfg.Data) })
	h.abilities = map[api.Model]func(context.Context) []api.Capability{}
	for name, impl := range h.models {
		h.abilities[name] = remembered(impl.Capabilities)
	}
	if err := os.MkdirAll(h.veDir(""), 0o711); err != nil {
		return nil, fmt.Errorf("host %q: %w", cfg.Name, err)
	}
	h.images, err = image.NewLibrary(image.Config{
		Host: cfg.Name, Peers: peers{h}, Pool: h.pool, Images: image.NewTable(parts.Store), Store: h.store, Engine: h.engine,
		Staging: filepath.Join(cfg.Data, "staging"), Cache: filepath.Join(cfg.Data, "cache"), InUse: h.usersOf, Log: h.log,
	})
	if err != nil {
		return nil, fmt.Errorf("host %q: %w", cfg.Name, err)
	}
	h.registerOperations()
	return h, nil
}

// Up makes the host what the store says, in the order that the parts need each other. It returns once the VEs that run are
// adopted; operations in flight and VEs that ended meanwhile are seen to in the background.
func (h *Host) Up(ctx context.Context) error {
	began := time.Now()
	if err := h.pool.Tidy(ctx); err != nil {
		return err
	}
	if err := h.images.Tidy(ctx); err != nil {
		return err
	}
	if err := h.networkUp(ctx); err != nil {
		return err
	}
	owned, err := h.owned(ctx)
	if err != nil {
		return err
	}
	due, err := h.restartsDue(ctx, owned)
	if err != nil {
		return err
	}
	adopted, lost, err := h.adopt(ctx, owned)
	if err != nil {
		return err
	}
	h.log.Info("host is up", "host", h.cfg.Name, "adopted", adopted, "lost", len(lost), "took", time.Since(began))
	if err := h.engine.Recover(ctx); err != nil {
		return err
	}
	for name, exit := range lost {
		h.wg.Go(func() { h.settle(name, exit) })
	}
	for name, exit := range due {
		h.wg.Go(func() { h.restart(name, exit) })
	}
	for name := range owned {
		h.wg.Go(func() { h.adoptLater(name) })
	}
	h.sweepSoon() // what has moved away while this host was down
	h.wg.Go(h.sweepWhenAsked)
	h.wg.Go(h.trimLogs)
	h.wg.Go(h.tendNetwork)
	h.wg.Go(h.tendImages)
	h.wg.Go(h.expireNowAndThen)
	return nil
}

// networkUp brings up the default network, which is created at the first start.
func (h *Host) networkUp(ctx context.Context) error {
	rec, err := h.networks.Get(ctx, defaultNetwork)
	if api.KindOf(err) == api.NotFound {
		var cfg network.Config
		if cfg, err = h.newNetwork(); err == nil {
			rec, err = h.networks.Create(ctx, defaultNetwork, cfg)
		}
	}
	if err != nil {
		return err
	}
	h.network = rec.Value
	if err := h.fabric.Up(ctx, h.network); err != nil {
		return err
	}
	if err := h.ownPort(ctx); err != nil {
		return err
	}
	if err := h.overlay(ctx); err != nil {
		return err
	}
	return h.publishLeases(ctx)
}

// tendInterval is how long DHCP and DNS may be away when their server has died.
const tendInterval = 10 * time.Second

// newNetwork is a default network that does not get in the way of what the machine is connected to.
func (h *Host) newNetwork() (network.Config, error) {
	taken, err := network.Taken()
	if err != nil {
		return network.Config{}, err
	}
	return network.DefaultConfig(taken, uuid.NewString())
}

// Close stops watching; VEs run on. Operations in flight are left for the next start to resume.
func (h *Host) Close() {
	h.cancel()
	h.wg.Wait()
}

// veDir is the directory of a VE's configuration, sockets and logs.
func (h *Host) veDir(id string) string { return filepath.Join(h.cfg.Data, "ve", id) }

func (h *Host) modelOf(m api.Model) (model.Model, error) {
	if impl, ok := h.models[m]; ok {
		return impl, nil
	}
	return nil, api.Errorf(api.Unsupported, "model %q: not available on host %q", m, h.cfg.Name)
}
