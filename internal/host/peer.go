package host

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"

	"polder/api"
	"polder/client"
	"polder/internal/migrate"
)

// maxPeerMessage bounds what one host tells another in one message; streams are not bounded.
const maxPeerMessage = 16 << 20

// PeerHandler answers other hosts of the cluster, below /peer/v1/. Whoever serves it has made sure that it is one.
func (h *Host) PeerHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /peer/v1/abilities/{op}", answer(h.abilitiesForPeer))
	mux.Handle("POST /peer/v1/plans/{op}", answer(h.planForPeer))
	mux.Handle("POST /peer/v1/moves/{op}/check", answer(h.checkArrival))
	mux.Handle("POST /peer/v1/moves/{op}/prepare", answer(h.prepareArrival))
	mux.Handle("POST /peer/v1/moves/{op}/open", answer(h.openArrival))
	mux.Handle("POST /peer/v1/moves/{op}/round", answer(h.receiveRound))
	mux.Handle("POST /peer/v1/moves/{op}/files", answer(h.receiveFiles))
	mux.Handle("POST /peer/v1/moves/{op}/finish", answer(h.finishArrival))
	mux.Handle("POST /peer/v1/moves/{op}/receive", answer(h.receiveVE))
	mux.Handle("POST /peer/v1/moves/{op}/holds", answer(h.holdsArrival))
	mux.Handle("POST /peer/v1/moves/{op}/serve", answer(h.serveFollower))
	mux.Handle("POST /peer/v1/moves/{op}/abandon", answer(h.abandonArrival))
	mux.Handle("POST /peer/v1/probes/{op}/start", answer(h.startProbe))
	mux.Handle("POST /peer/v1/probes/{op}/stop", answer(h.stopProbe))
	mux.Handle("GET "+migrate.Prefix, h.arrivals.sessions)
	mux.Handle(migrate.LinkPath, migrate.LinkHandler())
	mux.HandleFunc("GET /peer/v1/images/{digest}/{kind}", h.serveImage)
	return mux
}

// answer makes a handler of a request with a JSON body and a JSON answer. ctx ends when the other host goes away.
func answer[Q, A any](do func(ctx context.Context, op string, req Q) (A, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req Q
		err := json.NewDecoder(io.LimitReader(r.Body, maxPeerMessage)).Decode(&req)
		if err != nil {
			err = api.Errorf(api.Invalid, "malformed request: %w", err)
		}
		var answered any
		if err == nil {
			answered, err = do(r.Context(), r.PathValue("op"), req)
		}
		reply(w, answered, err)
	})
}

// reply writes an answer, or the error as a problem.
func reply(w http.ResponseWriter, answered any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		problem := api.ProblemOf(err)
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(problem.Status)
		answered = problem
	}
	json.NewEncoder(w).Encode(answered) //nolint:errcheck // the other host has gone
}

// tell makes a request of another host and decodes its answer into reply (nil: ignored).
func (h *Host) tell(ctx context.Context, host, path string, req, reply any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return api.Errorf(api.Internal, "tell host %q: %w", host, err)
	}
	out, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host+path, bytes.NewReader(body))
	if err != nil {
		return api.Errorf(api.Internal, "tell host %q: %w", host, err)
	}
	// The other host may have closed a kept connection, as it does when its daemon is started anew: then the request is made again
	// over a new one. Each can be repeated, or is refused when it comes again. The header itself is not sent.
	out.Header["Idempotency-Key"] = nil
	res, err := h.cluster.Transport(host).RoundTrip(out)
	switch {
	case ctx.Err() != nil:
		return &api.Error{Kind: api.Cancelled, Text: "cancelled", Err: context.Cause(ctx)}
	case err != nil:
		return api.Errorf(api.Unavailable, "host %q does not answer: %w", host, err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return client.Problem(res)
	}
	if reply == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxPeerMessage)).Decode(reply); err != nil {
		return api.Errorf(api.Unavailable, "the connection to host %q broke: %w", host, err)
	}
	return nil
}

// dialer opens connections to another host.
func (h *Host) dialer(host string) migrate.Dial {
	return func(ctx context.Context) (net.Conn, error) { return h.cluster.Dial(ctx, host) }
}
