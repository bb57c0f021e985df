// Package daemon assembles "polder serve": it opens the store, chooses the pool's driver, builds the map of models, and
// serves the API of the host that results. It is the one place where the parts are put together; it holds no logic of its
// own beyond that.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/daemon"

	"polder/api"
	"polder/internal/hardware"
	"polder/internal/host"
	"polder/internal/model"
	"polder/internal/model/container"
	"polder/internal/model/vm"
	"polder/internal/network"
	"polder/internal/operation"
	"polder/internal/server"
	"polder/internal/storage"
	"polder/internal/storage/btrfs"
	"polder/internal/storage/dir"
	"polder/internal/store"
)

// Options of the daemon.
type Options struct {
	Name    string   // of the host
	Data    string   // absolute; what must outlive a reboot
	Run     string   // absolute; what need not
	Listen  string   // path of the API's unix socket
	Etcd    []string // endpoints of an external etcd; empty: the embedded member
	EtcdTLS store.TLS
	Version string
	Log     *slog.Logger
}

// longestData keeps the sockets in VEs' directories below the kernel's limit of 107 bytes.
const longestData = 40

// Run serves until ctx is done, then closes the API and the store in order. VEs run on.
func Run(ctx context.Context, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	for _, d := range []string{o.Data, o.Run, filepath.Dir(o.Listen)} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("serve: %w", err)
		}
	}
	// Bound first: what asks while the host comes up waits instead of being refused, and a second daemon is told at once.
	listener, err := server.Listen(o.Listen, o.Log)
	if err != nil {
		return err
	}
	defer listener.Close()
	st, err := store.Open(ctx, store.Options{Dir: filepath.Join(o.Data, "store"), Endpoints: o.Etcd, TLS: o.EtcdTLS, Log: o.Log})
	if err != nil {
		return err
	}
	defer closing(o.Log, "store", st.Close)
	pool, err := openPool(ctx, filepath.Join(o.Data, "pools", "default"))
	if err != nil {
		return err
	}
	engine := operation.New(st, o.Name, o.Log)
	defer closing(o.Log, "operations", func() error { return engine.Close(context.WithoutCancel(ctx)) })
	h, err := host.New(host.Config{Name: o.Name, Data: o.Data, Run: o.Run, Version: o.Version, Log: o.Log}, host.Parts{
		Store: st, Engine: engine, Pool: pool,
		Fabric: network.NewFabric(filepath.Join(o.Run, "network"), o.Log),
		Models: models(ctx),
	})
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Up(ctx); err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		o.Log.Warn("systemd was not told that the daemon is ready", "error", err)
	}
	o.Log.Info("serving", "address", "unix://"+o.Listen, "host", o.Name)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		<-st.Failed() // or closed, when this function returns
		stop()
	}()
	err = server.New(h, server.Options{Version: o.Version, Log: o.Log}).Serve(ctx, listener)
	return errors.Join(err, st.Err())
}

func (o Options) check() error {
	if err := api.CheckName("host", o.Name); err != nil {
		return err
	}
	if !filepath.IsAbs(o.Data) || len(o.Data) > longestData {
		return api.Errorf(api.Invalid, "data directory %q: want an absolute path of at most %d bytes", o.Data, longestData)
	}
	if os.Geteuid() != 0 {
		return api.Errorf(api.Precondition, "serve: running VEs needs root: run it as root, or with sudo")
	}
	return nil
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

func closing(log *slog.Logger, what string, fn func() error) {
	if err := fn(); err != nil {
		log.Warn("not closed in order", "part", what, "error", err)
	}
}
