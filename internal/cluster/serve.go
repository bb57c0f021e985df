package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"polder/api"
)

// joinPath is the one route that a host without a certificate may use.
const joinPath = "/peer/join"

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// drainTime is what requests get to finish in when the daemon stops.
	drainTime = 10 * time.Second
)

type peerKey struct{}

// Peer is the host that a request came from over the peer port; "" when it came from a user. A request of a peer must not be
// handed on to another host once more.
func Peer(ctx context.Context) string {
	name, _ := ctx.Value(peerKey{}).(string)
	return name
}

// Serve answers other hosts until ctx is done, then lets requests finish: handler gets the requests of hosts that belong to the
// cluster, see Peer. It blocks.
func (c *Cluster) Serve(ctx context.Context, handler http.Handler) error {
	defer c.loop.Close()
	listeners := []net.Listener{c.loop}
	if address := c.identity.now().Address; address != "" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return api.Errorf(api.Precondition, "listen for other hosts at %s: %w: give this host the address that it has in the cluster", address, err)
		}
		listeners = append(listeners, tls.NewListener(l, c.credentials.Load().server()))
		c.log.Info("listening for other hosts", "address", address)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+joinPath, c.admitJoin)
	mux.Handle("/", c.peersOnly(handler))
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if _, ok := conn.(loopConn); ok {
				return context.WithValue(ctx, peerKey{}, c.Name())
			}
			return ctx
		},
	}
	served := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { served <- server.Serve(l) }()
	}
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if late := server.Shutdown(drain); errors.Is(late, context.DeadlineExceeded) {
		server.Close() //nolint:errcheck // the listeners are closed already
	}
	if err != nil && ctx.Err() == nil {
		return api.Errorf(api.Internal, "serve other hosts: %w", err)
	}
	return nil
}

// peersOnly lets in hosts of the cluster, and tells the handler which.
func (c *Cluster) peersOnly(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if Peer(r.Context()) != "" { // this host itself
			handler.ServeHTTP(w, r)
			return
		}
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		who := subjectOf(r.TLS.VerifiedChains[0][0])
		host, err := c.lookup(r.Context(), who.Name)
		switch {
		case api.KindOf(err) == api.NotFound || err == nil && host.ID != who.ID:
			writeProblem(w, api.Errorf(api.Precondition, "host %q was removed from the cluster", who.Name))
		case err != nil:
			writeProblem(w, err)
		default:
			handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, who.Name)))
		}
	})
}

func writeProblem(w http.ResponseWriter, err error) {
	p := api.ProblemOf(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p) //nolint:errcheck // the client went away: nobody left to tell
}
