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

// Pools lists the pools.
func (c *Client) Pools(ctx context.Context) (pools []api.Pool, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/pools", nil, &pools)
	return pools, err
}

// Volumes lists the volumes of a pool.
func (c *Client) Volumes(ctx context.Context, pool string) (volumes []api.Volume, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/pools/"+url.PathEscape(pool)+"/volumes", nil, &volumes)
	return volumes, err
}

// Capabilities lists what the host that answers can do.
func (c *Client) Capabilities(ctx context.Context) (capabilities []api.Capability, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/capabilities", nil, &capabilities)
	return capabilities, err
}
