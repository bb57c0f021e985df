package host

import (
	"context"
	"sync"
	"time"

	"polder/api"
	"polder/internal/network"
)

const (
	// probeEvery is how often a VE that is being moved is probed.
	probeEvery = 5 * time.Millisecond
	// answerPatience is how long a VE that answered before its move is waited for after it: one that was started anew boots first.
	answerPatience, bootPatience = 5 * time.Second, 3 * time.Minute
)

// probes are those that this host does for moves, by operation.
type probes struct {
	mu  sync.Mutex // guards all
	all map[string]*network.Probe
}

func newProbes() *probes { return &probes{all: map[string]*network.Probe{}} }

type (
	probeRequest struct {
		Lease network.Lease `json:"lease"`
		// Patience of "stop": how long the VE may take to answer again.
		Patience time.Duration `json:"patience"`
	}
	probeAnswer struct {
		Answered bool          `json:"answered"` // before
		Outage   time.Duration `json:"outage"`
	}
)

// observe lets another host probe the VE from now on. That nobody can is no reason not to move it.
func (h *Host) observe(ctx context.Context, r *moveRun, v VE) {
	name, err := h.observer(ctx, r.State)
	if err == nil {
		err = h.tell(ctx, name, "/peer/v1/probes/"+r.ID+"/start", probeRequest{Lease: v.Lease}, nil)
	}
	if err != nil {
		r.Log().Warn("the outage of a move can't be observed", "observer", name, "error", err)
		return
	}
	r.State.Observer = name
}

// observer is a host that neither end of the move is, where there is one; else the source.
func (h *Host) observer(ctx context.Context, m move) (string, error) {
	hosts, err := h.cluster.Hosts(ctx)
	if err != nil {
		return "", err
	}
	for _, s := range hosts {
		if s.Alive && s.Role != api.RoleWitness && s.Name != m.VE.Host && s.Name != m.Want.To {
			return s.Name, nil
		}
	}
	return m.VE.Host, nil
}

// observed ends the probing and gives the outage in milliseconds; -1: it is not known.
func (h *Host) observed(ctx context.Context, r *moveRun) int64 {
	if r.State.Observer == "" {
		return -1
	}
	patience := answerPatience
	if v, err := h.moving(ctx, r); err != nil || v.State != api.Running {
		patience = 0 // it won't answer
	} else if !r.State.keepsState() {
		patience = bootPatience
	}
	ctx, cancel := context.WithTimeout(ctx, patience+tellTimeout)
	defer cancel()
	var seen probeAnswer
	err := h.tell(ctx, r.State.Observer, "/peer/v1/probes/"+r.ID+"/stop", probeRequest{Patience: patience}, &seen)
	if err != nil {
		r.Log().Warn("the outage of a move is not known", "observer", r.State.Observer, "error", err)
		return -1
	}
	if !seen.Answered {
		return -1
	}
	return seen.Outage.Milliseconds()
}

// startProbe begins probing for another host.
func (h *Host) startProbe(_ context.Context, op string, req probeRequest) (struct{}, error) {
	probe, err := h.fabric.Probe(h.ctx, h.network, h.port, req.Lease, probeEvery)
	if err != nil {
		return struct{}{}, err
	}
	h.probes.mu.Lock()
	before := h.probes.all[op]
	h.probes.all[op] = probe
	h.probes.mu.Unlock()
	if before != nil {
		before.Stop()
	}
	h.wg.Go(func() {
		// A move that is undone asks for nothing.
		_, _ = h.engine.Wait(h.ctx, op, nil)
		h.probes.take(op, probe)
	})
	return struct{}{}, nil
}

// take ends a probe, if it is still the one.
func (p *probes) take(op string, probe *network.Probe) {
	p.mu.Lock()
	same := p.all[op] == probe
	if same {
		delete(p.all, op)
	}
	p.mu.Unlock()
	if same {
		probe.Stop()
	}
}

// stopProbe waits until the VE answers again, and says what was seen.
func (h *Host) stopProbe(ctx context.Context, op string, req probeRequest) (probeAnswer, error) {
	h.probes.mu.Lock()
	probe := h.probes.all[op]
	delete(h.probes.all, op)
	h.probes.mu.Unlock()
	if probe == nil {
		return probeAnswer{}, api.Errorf(api.NotFound, "host %q does not probe for operation %s", h.cfg.Name, op)
	}
	ctx, cancel := context.WithTimeout(ctx, req.Patience)
	defer cancel()
	awaitAnswer(ctx, probe)
	seen := probe.Stop()
	return probeAnswer{Answered: seen.Answering, Outage: seen.Longest}, nil
}

// awaitAnswer waits until the VE answers a probe, or ctx ends.
func awaitAnswer(ctx context.Context, probe *network.Probe) {
	began := time.Now()
	if !probe.Seen().Answering {
		return
	}
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for !probe.Seen().Last.After(began) {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}
