package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"polder/api"
	"polder/internal/cluster"
	"polder/internal/hardware"
	"polder/internal/host"
	"polder/internal/model"
	"polder/internal/model/container"
	"polder/internal/model/vm"
	"polder/internal/operation"
	"polder/internal/storage"
	"polder/internal/storage/btrfs"
	"polder/internal/storage/dir"
	"polder/internal/store"
)

// parts of a running daemon; what was not made is nil.
type parts struct {
	log      *slog.Logger
	identity *cluster.Identity
	store    *store.Store
	cluster  *cluster.Cluster
	engine   *operation.Engine
	host     *host.Host
}

// assemble puts the parts together; nothing runs yet. After an error nothing is left open.
func assemble(ctx context.Context, o Options) (_ *parts, err error) {
	p := &parts{log: o.Log}
	defer func() {
		if err != nil {
			p.close(ctx)
		}
	}()
	if p.identity, err = cluster.Identify(ctx, o.cluster()); err != nil {
		return nil, err
	}
	if p.store, err = openStore(ctx, p.identity, o); err != nil {
		return nil, err
	}
	pool, err := openPool(ctx, filepath.Join(o.Data, "pools", "default"))
	if err != nil {
		return nil, err
	}
	facts, err := factsOf(o, pool)
	if err != nil {
		return nil, err
	}
	if p.cluster, err = cluster.New(ctx, p.identity, p.store, facts); err != nil {
		return nil, err
	}
	p.engine = operation.New(p.store, o.Name, o.Log)
	p.host, err = host.New(host.Config{Name: o.Name, Data: o.Data, Run: o.Run, Version: o.Version, Log: o.Log}, host.Parts{
		Store: p.store, Engine: p.engine, Cluster: p.cluster, Pool: pool,
		Fabric: o.fabric(),
		Models: models(ctx),
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// close ends the parts, the last first. VEs run on.
func (p *parts) close(ctx context.Context) {
	closing := func(what string, fn func() error) {
		if err := fn(); err != nil {
			p.log.Warn("not closed in order", "part", what, "error", err)
		}
	}
	if p.host != nil {
		p.host.Close()
	}
	if p.engine != nil {
		closing("operations", func() error { return p.engine.Close(context.WithoutCancel(ctx)) })
	}
	if p.cluster != nil {
		p.cluster.Close()
	}
	if p.identity != nil {
		p.identity.Close()
	}
	if p.store != nil {
		closing("store", p.store.Close)
	}
}

// storePause is how long it takes until a store whose members do not answer is tried again.
const storePause = 2 * time.Second

var errNoStore = api.Errorf(api.Unavailable, "the store does not answer: too few of the hosts that keep it are up: bring them back; /var/lib/polder/cluster/identity.json says where they are")

// openStore waits, if need be, until other hosts that keep the store are back.
func openStore(ctx context.Context, identity *cluster.Identity, o Options) (*store.Store, error) {
	if identity.Waits() && o.because != nil {
		o.because(errNoStore)
		defer o.because(errComingUp)
	}
	for {
		st, err := identity.OpenStore(ctx)
		if api.KindOf(err) != api.Unavailable || !identity.Waits() || ctx.Err() != nil {
			return st, err
		}
		o.Log.Warn("the store does not answer: too few of the hosts that keep it are up", "error", err)
		select {
		case <-time.After(storePause):
		case <-ctx.Done():
		}
	}
}

// forPeers is what other hosts may ask: all that users may, and what only hosts ask each other.
func forPeers(h *host.Host, users http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/peer/v1/", h.PeerHandler())
	mux.Handle("/", users)
	return mux
}

// factsOf is what the cluster is told of this host.
func factsOf(o Options, pool storage.Pool) (cluster.Facts, error) {
	inventory, err := hardware.Take()
	if err != nil {
		return cluster.Facts{}, fmt.Errorf("host %q: %w", o.Name, err)
	}
	facts := cluster.Facts{
		Kernel: inventory.Kernel, CPUs: inventory.CPUs, Memory: inventory.Memory, BootedAt: inventory.BootedAt, PoolDriver: pool.Driver(),
		Capabilities: func(ctx context.Context) []api.Capability { return hardware.CapabilitiesAt(ctx, o.Data) },
		Figures: func(ctx context.Context) (f cluster.Figures, err error) {
			if f.PoolTotal, f.PoolFree, err = pool.Space(ctx); err == nil {
				f.MemoryFree, err = hardware.MemoryAvailable()
			}
			return f, err
		},
	}
	if sender, ok := pool.(storage.Sender); ok {
		facts.TransferFormat = sender.TransferFormat()
	}
	return facts, nil
}

// models are the ways of running VEs that this host offers.
func models(ctx context.Context) map[api.Model]model.Model {
	kvm, _ := hardware.KVM()
	return map[api.Model]model.Model{
		api.Container: container.New(),
		api.VM:        vm.New(vm.Config{KVM: kvm}),
	}
}

// openPool opens the directory as a pool: btrfs where the file system is btrfs, else dir.
func openPool(ctx context.Context, path string) (storage.Pool, error) {
	if err := os.MkdirAll(path, 0o711); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if is, err := btrfs.Is(path); err != nil {
		return nil, err
	} else if is {
		return btrfs.Open(ctx, "default", path)
	}
	return dir.Open(ctx, "default", path)
}
