package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"polder/api"
	"polder/internal/hardware"
	"polder/internal/migrate"
	"polder/internal/model"
	"polder/internal/storage"
)

// What the source of a move asks of its target, as JSON over the peer port. Each blocks until it is done; when its
// connection breaks it is given up.
type (
	// arrivalRequest ("check", "prepare") says what comes.
	arrivalRequest struct {
		VE       VE               `json:"ve"`
		Transfer storage.Transfer `json:"transfer"`
		Format   string           `json:"format"` // of the source's pool; see storage.Sender
		Origin   string           `json:"origin"` // of the base at the source
		Needs    []byte           `json:"needs,omitempty"`
		Memory   api.Bytes        `json:"memory_bytes"` // that it takes here: see model.Load.Room
		Bytes    api.Bytes        `json:"volume_bytes"`
	}
	checkAnswer struct {
		Blockers   []api.Blocker `json:"blockers"`
		NoPostCopy string        `json:"no_post_copy,omitempty"` // why memory can't follow to here
	}
	arrivalAnswer struct {
		Base string `json:"base"` // that the volume can be sent as a difference from; "": none
	}
	// openRequest ("open") opens the session of one try.
	openRequest struct {
		VE     string `json:"ve"` // UUID
		From   string `json:"from"`
		Secret []byte `json:"secret"`
	}
	// roundRequest ("round", "finish") is about the volume.
	roundRequest struct {
		Transfer storage.Transfer `json:"transfer"`
		Round    int              `json:"round"`
	}
	// receiveRequest ("receive") is the VE's memory.
	receiveRequest struct {
		Mirrored bool             `json:"mirrored"` // the disk comes by the hypervisor
		Transfer storage.Transfer `json:"transfer"`
	}
	// filesRequest ("files") is what a model keeps of the VE beside its volume: see model.Carrier.
	filesRequest struct {
		Files map[string][]byte `json:"files"` // by name
	}
	// holdsRequest ("holds") asks whether what was sent is still there.
	holdsRequest struct {
		VE     string `json:"ve"` // UUID
		Memory bool   `json:"memory"`
	}
	abandonRequest struct {
		VE string `json:"ve"` // UUID
	}
	// serveRequest ("serve") asks the source to send what a VE that has gone on here still lacks: see model.Follower.
	serveRequest struct {
		VE string `json:"ve"` // UUID
		To string `json:"to,omitempty"`
	}
	serveAnswer struct {
		Bytes api.Bytes `json:"bytes"` // of memory, so far
	}
)

// arrivals are the moves that come to this host just now.
type arrivals struct {
	sessions *migrate.Sessions

	mu   sync.Mutex // guards open
	open map[string]*arrival
}

// arrival is the target's end of a move, from "open" on. A new daemon knows none: what it finds half-made it sweeps up.
type arrival struct {
	ve       VE
	session  *migrate.Session
	finished chan struct{} // closed when the volume is complete
	once     sync.Once
}

func newArrivals() *arrivals {
	return &arrivals{sessions: migrate.NewSessions(), open: map[string]*arrival{}}
}

func (a *arrivals) find(op string) (*arrival, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if in := a.open[op]; in != nil {
		return in, nil
	}
	return nil, api.Errorf(api.Precondition, "move %s is not open on this host: its daemon was started anew; the move is undone", op)
}

// drop ends the arrivals that which picks.
func (a *arrivals) drop(which func(op string, in *arrival) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for op, in := range a.open {
		if which(op, in) {
			in.session.Close()
			delete(a.open, op)
		}
	}
}

// prepareArrival checks whether the VE can live here, and fetches the image that its volume is a child of.
func (h *Host) prepareArrival(ctx context.Context, _ string, req arrivalRequest) (arrivalAnswer, error) {
	var answer arrivalAnswer
	v := req.VE
	rec, err := h.get(ctx, v.Name)
	if err != nil {
		return answer, err
	}
	if rec.ID != v.ID || rec.MovingTo != h.cfg.Name {
		return answer, api.Errorf(api.Precondition, "ve %q is not on its way to host %q", v.Name, h.cfg.Name)
	}
	// An earlier try may have left something.
	unlock := h.sweeping.lock(v.ID)
	err = h.clear(ctx, v)
	unlock()
	if err != nil {
		return answer, err
	}
	if answer.Base, err = h.commonBase(ctx, req); err != nil {
		return answer, err
	}
	return answer, nil
}

// checkArrival says what of this host stands in the way of a VE. Nothing is changed.
func (h *Host) checkArrival(ctx context.Context, _ string, req arrivalRequest) (checkAnswer, error) {
	v, room := req.VE, checkAnswer{}
	refuse := func(remedy, format string, args ...any) {
		room.Blockers = append(room.Blockers, api.Blocker{Reason: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	const elsewhere = "move it to another host"
	if format := h.pool.TransferFormat(); format != req.Format {
		refuse("move it to a host whose pool has the same driver", "the pools differ: volumes of host %q are sent as %q, host %q takes %q", v.Host, req.Format, h.cfg.Name, format)
	}
	if v.Memory > h.inv.Memory || v.CPUs > h.inv.CPUs {
		refuse(elsewhere, "it has %d cpus and %v of memory; host %q has %d and %v", v.CPUs, v.Memory, h.cfg.Name, h.inv.CPUs, h.inv.Memory)
	}
	if free, err := hardware.MemoryAvailable(); err == nil && req.Memory > free {
		refuse(elsewhere, "it takes %v of memory until it has gone on there; host %q has %v free", req.Memory, h.cfg.Name, free)
	}
	if _, free, err := h.pool.Space(ctx); err == nil && req.Bytes > free {
		refuse("make room there, or "+elsewhere, "its volume takes %v; pool %q of host %q has %v free", req.Bytes, defaultPool, h.cfg.Name, free)
	}
	if len(req.Needs) == 0 {
		return room, nil
	}
	mover, err := h.mover(v.Model)
	if err != nil {
		return room, err
	}
	if follower, ok := mover.(model.Follower); ok {
		if err := follower.CanFollow(); err != nil {
			room.NoPostCopy = fmt.Sprintf("host %q: %v", h.cfg.Name, err)
		}
	}
	lacking, err := mover.Fits(ctx, req.Needs)
	room.Blockers = append(room.Blockers, lacking...)
	return room, err
}

// commonBase makes sure that the image's base is here, and says whether the volume can be sent as what differs from it.
func (h *Host) commonBase(ctx context.Context, req arrivalRequest) (string, error) {
	if req.Origin == "" {
		return "", nil
	}
	kind := req.Transfer.Kind
	img, err := h.images.Resolve(ctx, req.VE.ImageDigest)
	if err == nil {
		err = h.images.Ensure(ctx, img.Digest, kind, nil)
	}
	if err != nil {
		return "", fmt.Errorf("fetch the image of ve %q: %w", req.VE.Name, err)
	}
	base := baseOf(req.VE)
	origin, err := h.pool.BaseOrigin(ctx, base, kind)
	if err != nil || origin != req.Origin {
		return "", err
	}
	return base, nil
}

// openArrival opens the session of a move. Whatever another try has left open for the VE is closed.
func (h *Host) openArrival(ctx context.Context, op string, req openRequest) (struct{}, error) {
	var none struct{}
	v, err := h.arriving(ctx, req.VE)
	if err != nil {
		return none, err
	}
	peer, local, err := h.between(ctx, req.From)
	if err != nil {
		return none, err
	}
	h.arrivals.drop(func(_ string, in *arrival) bool { return in.ve.ID == v.ID })
	if err := h.turns.to.Acquire(ctx, 1); err != nil {
		return none, err
	}
	session := h.arrivals.sessions.Open(op, req.Secret, peer, local)
	h.wg.Go(func() {
		select {
		case <-session.Done():
		case <-h.ctx.Done():
			session.Close()
		}
		h.turns.to.Release(1)
	})
	h.arrivals.mu.Lock()
	h.arrivals.open[op] = &arrival{ve: v, session: session, finished: make(chan struct{})}
	h.arrivals.mu.Unlock()
	return none, h.mark(v)
}

// arriving is the VE with that id, which must be on its way to this host.
func (h *Host) arriving(ctx context.Context, id string) (VE, error) {
	recs, err := h.ves.List(ctx)
	if err != nil {
		return VE{}, err
	}
	for _, rec := range recs {
		if rec.Value.ID == id && rec.Value.MovingTo == h.cfg.Name {
			return rec.Value, nil
		}
	}
	return VE{}, api.Errorf(api.Precondition, "no ve %s is on its way to host %q", id, h.cfg.Name)
}

func (h *Host) receiveRound(ctx context.Context, op string, req roundRequest) (struct{}, error) {
	var none struct{}
	in, err := h.arrivals.find(op)
	if err != nil {
		return none, err
	}
	stream, err := in.session.Stream(ctx, roundStream(req.Round))
	if err != nil {
		return none, err
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	if err := h.pool.ReceiveRound(ctx, req.Transfer, req.Round, stream); err != nil {
		return none, fmt.Errorf("receive volume, round %d: %w", req.Round, err)
	}
	return none, nil
}

func (h *Host) finishArrival(ctx context.Context, op string, req roundRequest) (struct{}, error) {
	var none struct{}
	in, err := h.arrivals.find(op)
	if err != nil {
		return none, err
	}
	if _, err := h.pool.FinishReceive(ctx, req.Transfer); err != nil {
		return none, err
	}
	in.once.Do(func() { close(in.finished) })
	return none, nil
}

// receiveVE makes the VE of what comes, up to where it stands still.
func (h *Host) receiveVE(ctx context.Context, op string, req receiveRequest) (struct{}, error) {
	var none struct{}
	in, err := h.arrivals.find(op)
	if err != nil {
		return none, err
	}
	mover, err := h.mover(in.ve.Model)
	if err != nil {
		return none, err
	}
	defer h.haste.begin()()
	if req.Mirrored {
		if _, err := h.pool.MakeDisk(ctx, req.Transfer); err != nil {
			return none, err
		}
		in.once.Do(func() { close(in.finished) })
	}
	spec := h.specOn(in.ve, model.Root{})
	err = mover.Receive(ctx, spec, in.session, model.ReceiveOptions{Volume: func(ctx context.Context) (model.Root, error) {
		select {
		case <-in.finished:
		case <-ctx.Done():
			return model.Root{}, ctx.Err()
		}
		full, err := h.spec(ctx, in.ve)
		return full.Root, err
	}})
	if err != nil {
		return none, fmt.Errorf("receive ve %q on host %q: %w", in.ve.Name, h.cfg.Name, err)
	}
	return none, nil
}

// receiveFiles writes what the model keeps of the VE.
func (h *Host) receiveFiles(_ context.Context, op string, req filesRequest) (struct{}, error) {
	var none struct{}
	in, err := h.arrivals.find(op)
	if err != nil {
		return none, err
	}
	for name, content := range req.Files {
		if !filepath.IsLocal(name) || filepath.Base(name) != name {
			return none, api.Errorf(api.Invalid, "file %q of ve %q: want a plain name", name, in.ve.Name)
		}
		if err := os.WriteFile(filepath.Join(h.veDir(in.ve.ID), name), content, 0o600); err != nil {
			return none, err
		}
	}
	return none, nil
}

// holdsArrival is an error unless this host has all of the VE, standing still. The daemon may be another one than that which
// received it.
func (h *Host) holdsArrival(ctx context.Context, _ string, req holdsRequest) (struct{}, error) {
	var none struct{}
	v, err := h.arriving(ctx, req.VE)
	if err != nil {
		return none, err
	}
	spec, err := h.spec(ctx, v)
	if err != nil || !req.Memory {
		return none, err
	}
	impl, err := h.modelOf(v.Model)
	if err != nil {
		return none, err
	}
	_, _, alive, err := impl.Adopt(ctx, spec)
	if err == nil && !alive {
		err = api.Errorf(api.Precondition, "ve %q had come to host %q and ended there: the host went down, or its processes were killed", v.Name, h.cfg.Name)
	}
	return none, err
}

// abandonArrival ends the session and removes what has come.
func (h *Host) abandonArrival(ctx context.Context, op string, req abandonRequest) (struct{}, error) {
	h.arrivals.drop(func(other string, _ *arrival) bool { return other == op })
	h.sweepSoon()
	return struct{}{}, nil
}
