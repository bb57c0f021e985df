package store

import (
	"context"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"polder/api"
)

// askers are connections to one member each, to ask that very one how it is. They are kept: members are asked often, and TLS
// takes more time to begin than to go on. Safe for concurrent use.
type askers struct {
	options Options // for each, but for the endpoint

	mu      sync.Mutex
	clients map[string]*clientv3.Client // by address; nil: closed
}

func newAskers(o Options) *askers {
	if o.Peering != nil {
		o.TLS = o.Peering.TLS
	}
	return &askers{options: Options{TLS: o.TLS, Log: o.Log}, clients: map[string]*clientv3.Client{}}
}

func (a *askers) status(ctx context.Context, address string) (*etcdserverpb.StatusResponse, error) {
	client, err := a.client(address)
	if err != nil {
		return nil, err
	}
	return etcdserverpb.NewMaintenanceClient(client.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
}

func (a *askers) client(address string) (*clientv3.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.clients == nil {
		return nil, api.Errorf(api.Unavailable, "ask store's member at %s: %w", address, errClosed)
	}
	if client := a.clients[address]; client != nil {
		return client, nil
	}
	o := a.options
	o.Endpoints = []string{secureURL(address)}
	client, _, err := connect(o)
	if err == nil {
		a.clients[address] = client
	}
	return client, err
}

// keep closes the connections to all but these.
func (a *askers) keep(members []Member) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for address, client := range a.clients {
		stays := false
		for _, m := range members {
			stays = stays || m.Client == address
		}
		if !stays {
			_ = client.Close() // nothing that matters is under way there
			delete(a.clients, address)
		}
	}
}

func (a *askers) close() {
	a.keep(nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clients = nil
}
