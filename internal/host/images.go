package host

import (
	"context"
	"io"
	"net/http"
	"time"

	"polder/api"
	"polder/client"
	"polder/internal/storage"
)

// peers are the other hosts, as the image library asks them for bases.
type peers struct{ h *Host }

// Reachable implements image.Peers.
func (p peers) Reachable(ctx context.Context) ([]string, error) {
	hosts, err := p.h.cluster.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range hosts {
		if s.Alive && s.Name != p.h.cfg.Name && s.Role != api.RoleWitness {
			names = append(names, s.Name)
		}
	}
	return names, nil
}

// Open implements image.Peers.
func (p peers) Open(ctx context.Context, host, digest string, kind storage.Kind, form string) (io.ReadCloser, error) {
	path := "http://" + host + "/peer/v1/images/" + digest + "/" + string(kind) + "?form=" + form
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, api.Errorf(api.Internal, "ask host %q for image %s: %w", host, digest, err)
	}
	res, err := p.h.cluster.Transport(host).RoundTrip(req)
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "host %q does not answer: %w", host, err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		return nil, client.Problem(res)
	}
	return res.Body, nil
}

// tendImages keeps this host's pool and the records of images in step: what was deleted on another host goes here too.
func (h *Host) tendImages() {
	changes := h.images.Images.Watch(h.ctx, 0)
	soon := time.NewTimer(0)
	defer soon.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case _, ok := <-changes:
			if !ok {
				return
			}
			soon.Reset(settleTime)
			continue
		case <-soon.C:
		}
		if err := h.images.Reconcile(h.ctx); err != nil && h.ctx.Err() == nil {
			h.log.Warn("the pool and the images do not agree", "error", err)
		}
	}
}

// serveImage writes a base for another host. What fails after the first byte breaks the connection, which the other one sees.
func (h *Host) serveImage(w http.ResponseWriter, r *http.Request) {
	out := &begun{ResponseWriter: w}
	err := h.images.Serve(r.Context(), r.PathValue("digest"), storage.Kind(r.PathValue("kind")), r.URL.Query().Get("form"), out)
	switch {
	case err == nil:
	case !out.begun:
		reply(w, nil, err)
	default:
		h.log.Warn("an image was not sent whole", "image", r.PathValue("digest"), "error", err)
		panic(http.ErrAbortHandler)
	}
}

// begun remembers whether anything was written.
type begun struct {
	http.ResponseWriter
	begun bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.begun = true
	return b.ResponseWriter.Write(p)
}
