package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"polder/api"
)

type cloneInput struct {
	Name string `path:"name" doc:"name of the VE"`
	Body api.CloneRequest
}

func (s *Server) routeClones() {
	clone := s.starts(http.MethodPost, "/ves/{name}/clone", "clone-ve", tagVE, "Make VEs that begin as this one is")
	clone.Description = "The operation's result is a CloneResult. Disks are copied on write; a fork's memory too. Each new VE has an identity of its own: " +
		"name, addresses, machine id, SSH host keys."
	huma.Register(s.api, clone, func(ctx context.Context, in *cloneInput) (*started, error) {
		if _, err := in.Body.Names(); err != nil {
			return nil, failure(err)
		}
		return start(s.backend.Clone(ctx, in.Name, in.Body))
	})
}
