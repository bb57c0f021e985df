package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

const tagHost = "hosts, networks and storage"

// hostQuery is read by toHost.
type hostQuery struct {
	Host string `query:"host" doc:"the host that is meant; default: the one that answers"`
}

// ofHost describes a route that shows what one host has.
func (s *Server) ofHost(path, id, summary string) huma.Operation {
	op := s.operation(http.MethodGet, path, id, tagHost, summary)
	op.Middlewares = huma.Middlewares{s.toHost}
	return op
}

func (s *Server) routeHosts() {
	huma.Register(s.api, s.operation(http.MethodGet, "/hosts", "list-hosts", tagHost, "List the hosts"),
		func(ctx context.Context, _ *none) (*out[[]api.Host], error) {
			hosts, err := s.backend.Hosts(ctx)
			return answer(list(hosts), err)
		})
	huma.Register(s.api, s.operation(http.MethodPost, "/hosts/token", "make-join-token", tagHost, "Make a token with which one more host joins"),
		func(ctx context.Context, in *struct{ Body api.JoinTokenRequest }) (*out[api.JoinToken], error) {
			token, err := s.backend.JoinToken(ctx, in.Body)
			return answer(token, err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/hosts/{name}", "get-host", tagHost, "Show a host"),
		func(ctx context.Context, in *struct {
			Name string `path:"name" doc:"name of the host"`
		},
		) (*out[api.Host], error) {
			host, err := s.backend.Host(ctx, in.Name)
			return answer(host, err)
		})
	huma.Register(s.api, s.operation(http.MethodDelete, "/hosts/{name}", "remove-host", tagHost, "Take a host out of the cluster"),
		func(ctx context.Context, in *struct {
			Name  string `path:"name" doc:"name of the host"`
			Force bool   `query:"force" doc:"also a host that is alive, or has VEs: their records are deleted"`
		},
		) (*out[api.HostRemoval], error) {
			removal, err := s.backend.RemoveHost(ctx, in.Name, in.Force)
			return answer(removal, err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/networks", "list-networks", tagHost, "List the networks"),
		func(ctx context.Context, _ *none) (*out[[]api.Network], error) {
			networks, err := s.backend.Networks(ctx)
			return answer(list(networks), err)
		})
	huma.Register(s.api, s.operation(http.MethodPatch, "/networks/{name}", "change-network", tagHost, "Change a network"),
		func(ctx context.Context, in *struct {
			Name string `path:"name" doc:"name of the network"`
			Body api.NetworkChange
		},
		) (*out[api.Network], error) {
			network, err := s.backend.ChangeNetwork(ctx, in.Name, in.Body)
			return answer(network, err)
		})
	huma.Register(s.api, s.ofHost("/pools", "list-pools", "List the pools of a host"),
		func(ctx context.Context, _ *hostQuery) (*out[[]api.Pool], error) {
			pools, err := s.backend.Pools(ctx)
			return answer(list(pools), err)
		})
	huma.Register(s.api, s.ofHost("/pools/{name}/volumes", "list-volumes", "List the volumes of a host's pool"),
		func(ctx context.Context, in *struct {
			Name string `path:"name" doc:"name of the pool"`
			Host string `query:"host" doc:"the host that is meant; default: the one that answers"`
		},
		) (*out[[]api.Volume], error) {
			volumes, err := s.backend.Volumes(ctx, in.Name)
			return answer(list(volumes), err)
		})
	huma.Register(s.api, s.ofHost("/capabilities", "list-capabilities", "List what a host can do"),
		func(ctx context.Context, _ *hostQuery) (*out[[]api.Capability], error) {
			capabilities, err := s.backend.Capabilities(ctx)
			return answer(list(capabilities), err)
		})
}
