// Package server is the HTTP side of Polder: routes under /v1, event streams, exec and console sessions, the OpenAPI
// description and metrics. It is thin: decode, call the Backend, encode.
//
// It owns no state beyond the connections open at the moment. Errors of the Backend become RFC 9457 problems that carry
// their kind. A Server is safe for concurrent use, and calls its Backend concurrently.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"polder/api"
)

const (
	// maxBody bounds a JSON request: cloud-init user-data of 1 MiB, escaped, and room for the rest.
	maxBody = 4 << 20
	// drainTime is what a graceful shutdown gives requests to finish in.
	drainTime = 10 * time.Second
)

// Options of a Server.
type Options struct {
	Log     *slog.Logger // nil: none
	Version string       // of Polder, for the OpenAPI description
	// Host is this host's name, and Transport the way to the server of another one: requests about a VE that is there are
	// handed on. nil: there are no other hosts.
	Host      string
	Transport func(host string) http.RoundTripper
	// Metrics are served at /metrics beside the server's own; may be nil.
	Metrics prometheus.Gatherer
}

// Server answers the HTTP API for one Backend.
type Server struct {
	backend Backend
	log     *slog.Logger
	mux     *http.ServeMux
	api     huma.API
	metrics *metrics
	// See Options.
	host      string
	transport func(host string) http.RoundTripper

	closing chan struct{}  // closed when long-lived streams must end
	close   sync.Once      // of closing
	streams sync.WaitGroup // sessions that http.Server does not know of: they took over their connection
}

// New makes the handler of all routes.
func New(backend Backend, o Options) *Server {
	useProblems()
	s := &Server{
		backend: backend,
		log:     o.Log,
		mux:     http.NewServeMux(),
		host:    o.Host, transport: o.Transport,
		closing: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.metrics = newMetrics(backend, s.log)
	s.api = humago.New(s.mux, describe(o.Version))
	s.routeVEs()
	s.routeImages()
	s.routeOperations()
	s.routeHosts()
	s.mux.Handle("GET /metrics", s.metrics.handler(o.Metrics))
	s.mux.Handle("GET /openapi.json", s.openAPI())
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, api.Errorf(api.NotFound, "no route %s %s; see /openapi.json", r.Method, r.URL.Path))
	})
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	defer func() {
		if cause := recover(); cause != nil {
			if cause == http.ErrAbortHandler { //nolint:errorlint // the exact value is the signal
				panic(cause)
			}
			s.log.Error("request handler panicked", "method", r.Method, "path", r.URL.Path, "cause", cause, "stack", stack())
			if !rec.wrote {
				writeProblem(rec, api.Errorf(api.Internal, "defect in the server: %v; its log says more", cause))
			}
		}
		s.metrics.observe(r, rec.status, time.Since(start))
		s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "took", time.Since(start))
	}()
	s.mux.ServeHTTP(rec, r)
}

// Serve answers on l until ctx is done; then it ends the streams, lets other requests finish and closes l. It blocks.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	srv.RegisterOnShutdown(s.endStreams)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	var beside sync.WaitGroup
	defer beside.Wait()
	follow, stop := context.WithCancel(ctx)
	defer stop()
	beside.Go(func() { s.metrics.moves.follow(follow, s.backend) })
	select {
	case err := <-served:
		s.endStreams()
		return api.Errorf(api.Internal, "serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	err := srv.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	<-served //nolint:errcheck // it says that the server was closed
	s.streams.Wait()
	if err != nil {
		return api.Errorf(api.Internal, "shut down %s: %w", l.Addr(), err)
	}
	return nil
}

func (s *Server) endStreams() { s.close.Do(func() { close(s.closing) }) }

// streamContext is the request's context, which also ends when the server shuts down.
func (s *Server) streamContext(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// recorder remembers what was answered. http.ResponseController and websocket reach the writer below by Unwrap.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (r *recorder) WriteHeader(status int) {
	if !r.wrote {
		r.status, r.wrote = status, true
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(p)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
