package client

import (
	"context"
	"net/http"
	"net/url"

	"polder/api"
)

// Hosts lists the hosts of the cluster.
func (c *Client) Hosts(ctx context.Context) (hosts []api.Host, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/hosts", nil, &hosts)
	return hosts, err
}

// Networks lists the networks.
func (c *Client) Networks(ctx context.Context) (networks []api.Network, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/networks", nil, &networks)
	return networks, err
}

// ChangeNetwork changes a network on all hosts.
func (c *Client) ChangeNetwork(ctx context.Context, name string, change api.NetworkChange) (network api.Network, err error) {
	err = c.call(ctx, http.MethodPatch, "/v1/networks/"+url.PathEscape(name), change, &network)
	return network, err
}

// Pools lists the pools of the host that answers.
func (c *Client) Pools(ctx context.Context) (pools []api.Pool, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/pools", nil, &pools)
	return pools, err
}

// Volumes lists the volumes of a pool of the host that answers.
func (c *Client) Volumes(ctx context.Context, pool string) (volumes []api.Volume, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/pools/"+url.PathEscape(pool)+"/volumes", nil, &volumes)
	return volumes, err
}

// Capabilities lists what the host that answers can do.
func (c *Client) Capabilities(ctx context.Context) (capabilities []api.Capability, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/capabilities", nil, &capabilities)
	return capabilities, err
}

// Host finds one host.
func (c *Client) Host(ctx context.Context, name string) (host api.Host, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/hosts/"+url.PathEscape(name), nil, &host)
	return host, err
}

// JoinToken makes a token with which one more host joins the cluster.
func (c *Client) JoinToken(ctx context.Context, req api.JoinTokenRequest) (token api.JoinToken, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/hosts/token", req, &token)
	return token, err
}

// RemoveHost takes a host out of the cluster. Without force it refuses while the host is alive or has VEs; with it, the VEs'
// records are deleted, and what is on the host is lost to the cluster.
func (c *Client) RemoveHost(ctx context.Context, name string, force bool) (removed api.HostRemoval, err error) {
	path := "/v1/hosts/" + url.PathEscape(name)
	if force {
		path += "?force=true"
	}
	err = c.call(ctx, http.MethodDelete, path, nil, &removed)
	return removed, err
}

// HostPools lists the pools of one host.
func (c *Client) HostPools(ctx context.Context, host string) (pools []api.Pool, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/pools?host="+url.QueryEscape(host), nil, &pools)
	return pools, err
}

// HostVolumes lists the volumes of one host's pool.
func (c *Client) HostVolumes(ctx context.Context, host, pool string) (volumes []api.Volume, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/pools/"+url.PathEscape(pool)+"/volumes?host="+url.QueryEscape(host), nil, &volumes)
	return volumes, err
}
