package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

const tagHost = "hosts, networks and storage"

func (s *Server) routeHosts() {
	huma.Register(s.api, s.operation(http.MethodGet, "/hosts", "list-hosts", tagHost, "List the hosts"),
		func(ctx context.Context, _ *none) (*out[[]api.Host], error) {
			hosts, err := s.backend.Hosts(ctx)
			return answer(list(hosts), err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/networks", "list-networks", tagHost, "List the networks"),
		func(ctx context.Context, _ *none) (*out[[]api.Network], error) {
			networks, err := s.backend.Networks(ctx)
			return answer(list(networks), err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/pools", "list-pools", tagHost, "List the pools"),
		func(ctx context.Context, _ *none) (*out[[]api.Pool], error) {
			pools, err := s.backend.Pools(ctx)
			return answer(list(pools), err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/pools/{name}/volumes", "list-volumes", tagHost, "List the volumes of a pool"),
		func(ctx context.Context, in *struct {
			Name string `path:"name" doc:"name of the pool"`
		},
		) (*out[[]api.Volume], error) {
			volumes, err := s.backend.Volumes(ctx, in.Name)
			return answer(list(volumes), err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/capabilities", "list-capabilities", tagHost, "List what the host that answers can do"),
		func(ctx context.Context, _ *none) (*out[[]api.Capability], error) {
			capabilities, err := s.backend.Capabilities(ctx)
			return answer(list(capabilities), err)
		})
}
