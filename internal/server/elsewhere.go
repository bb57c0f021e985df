package server

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"polder/api"
)

// forwardedHeader names the host that has handed a request on to this one. It is not handed on again: two hosts that each
// take a VE for the other's would do so for ever.
const forwardedHeader = "Polder-Forwarded-By"

// atHome lets the host of a VE serve a request about it, wherever it was made.
func (s *Server) atHome(serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.transport == nil {
			serve(w, r)
			return
		}
		ve, err := s.backend.VE(r.Context(), r.PathValue("name"))
		switch {
		case err != nil:
			writeProblem(w, err)
		case ve.Host == s.host:
			serve(w, r)
		default:
			s.forward(w, r, ve.Host)
		}
	}
}

// toHost lets the host that the query "host" names serve a request; this one when it names none.
func (s *Server) toHost(ctx huma.Context, next func(huma.Context)) {
	host := ctx.Query("host")
	if host == "" || host == s.host {
		next(ctx)
		return
	}
	r, w := humago.Unwrap(ctx)
	switch {
	case api.CheckName("host", host) != nil:
		writeProblem(w, api.CheckName("host", host))
	case s.transport == nil:
		writeProblem(w, api.Errorf(api.NotFound, "host %q not found; see: polder host list", host))
	default:
		s.forward(w, r, host)
	}
}

// forward hands a request on, streams included, and the answer back as it comes. It blocks until both have ended.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, host string) {
	if by := r.Header.Get(forwardedHeader); by != "" {
		writeProblem(w, api.Errorf(api.Unavailable, "host %q took host %q for the right one, and that one host %q: try again in a moment", by, s.host, host))
		return
	}
	s.streams.Add(1) // the connection may leave http.Server's sight
	defer s.streams.Done()
	ctx, cancel := s.streamContext(r)
	defer cancel()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", host, host
			p.Out.Header.Set(forwardedHeader, s.host)
		},
		Transport:     s.transport(host),
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			var known *api.Error
			switch {
			case s.ended(nil) != nil:
				err = s.ended(nil)
			case errors.As(err, &known):
				err = known
			default:
				err = api.Errorf(api.Unavailable, "host %q does not answer: %w", host, err)
			}
			writeProblem(w, err)
		},
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}
