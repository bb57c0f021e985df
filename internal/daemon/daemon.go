// Package daemon assembles "polder serve": it joins a cluster or finds its place in it, opens the store, chooses the pool's
// driver, builds the map of models, and serves the API of the host that results. It is the one place where the parts are put
// together; it holds no logic of its own beyond that.
//
// When this host's part in the store changes (it is opened for others, or stops being a member), all parts are closed
// and put together anew, in this process: the API's socket stays, and VEs run on.
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
	"polder/internal/cluster"
	"polder/internal/hardware"
	"polder/internal/network"
	"polder/internal/server"
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
	// Join, Address, Site and Witness are as in cluster.Options.
	Join    string
	Address string
	Site    string
	Witness bool
	Version string
	Log     *slog.Logger

	because func(error) // hears what requests wait for; may be nil
}

// longestData keeps the sockets in VEs' directories below the kernel's limit of 107 bytes.
const longestData = 40

// Run serves until ctx is done, then closes the API and the store in order. VEs run on.
func Run(ctx context.Context, o Options) error { return run(ctx, o, assemble) }

// run is Run with parts that put makes.
func run(ctx context.Context, o Options, put func(context.Context, Options) (*parts, error)) error {
	if err := o.check(); err != nil {
		return err
	}
	for _, d := range []string{o.Data, o.Run, filepath.Dir(o.Listen)} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("serve: %w", err)
		}
	}
	hardware.RaiseInotify(o.Log)
	// Bound first: what asks while the host comes up waits instead of being refused, and a second daemon is told at once.
	listener, err := server.Listen(o.Listen, o.Log)
	if err != nil {
		return err
	}
	defer listener.Close()
	front := newFront(listener)
	o.because = front.because
	for {
		p, err := put(ctx, o)
		if err == nil {
			err = p.serve(ctx, o, front)
		}
		if !errors.Is(err, errReopen) {
			return err
		}
		o.Log.Info("this host's part in the store has changed: it is put together anew")
	}
}

// errReopen says that the parts are to be put together anew.
var errReopen = errors.New("the store is to be opened anew")

// serve brings the host up and serves until ctx is done, a part fails, or the parts are to be put together anew.
func (p *parts) serve(ctx context.Context, o Options, front *front) error {
	defer p.close(ctx)
	p.cluster.Up()
	err := p.host.Up(ctx)
	if err != nil {
		return err
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		o.Log.Warn("systemd was not told that the daemon is ready", "error", err)
	}
	o.Log.Info("serving", "address", "unix://"+o.Listen, "host", o.Name)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-p.store.Failed(): // or closed, when this function returns
		case <-p.cluster.Reopen():
			stop(errReopen)
		}
		stop(nil)
	}()
	s := server.New(p.host, server.Options{Version: o.Version, Log: o.Log, Host: o.Name, Transport: p.cluster.Transport})
	peers := make(chan error, 1)
	go func() {
		err := p.cluster.Serve(ctx, forPeers(p.host, s))
		stop(err)
		peers <- err
	}()
	err = s.Serve(store.Patience(ctx, frontPatience), front.door())
	stop(err)
	err = errors.Join(err, <-peers, p.store.Err())
	switch {
	case api.KindOf(p.store.Err()) == api.Precondition: // this host was taken out of the store's members
		return errReopen
	case err == nil && errors.Is(context.Cause(ctx), errReopen):
		return errReopen
	}
	return err
}

func (o Options) check() error {
	if err := api.CheckName("host", o.Name); err != nil {
		return err
	}
	if o.Site != "" {
		if err := api.CheckName("site", o.Site); err != nil {
			return err
		}
	}
	if !filepath.IsAbs(o.Data) || len(o.Data) > longestData {
		return api.Errorf(api.Invalid, "data directory %q: want an absolute path of at most %d bytes", o.Data, longestData)
	}
	if os.Geteuid() != 0 {
		return api.Errorf(api.Precondition, "serve: running VEs needs root: run it as root, or with sudo")
	}
	return nil
}

func (o Options) fabric() *network.Fabric {
	f := network.NewFabric(filepath.Join(o.Run, "network"), o.Log)
	f.Prober = []string{"/proc/self/exe", network.ProberArg}
	return f
}

func (o Options) cluster() cluster.Options {
	return cluster.Options{
		Name: o.Name, Data: o.Data, Version: o.Version, Address: o.Address, Site: o.Site, Witness: o.Witness, Join: o.Join,
		Etcd: o.Etcd, EtcdTLS: o.EtcdTLS, Log: o.Log,
		Leave: func(ctx context.Context) error { return leave(ctx, o.fabric(), o.Log) },
	}
}
