package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"polder/api"
)

// sweeper keeps the sweeping of a VE's remains and its next arrival apart.
type sweeper struct {
	soon chan struct{} // one message: sweep

	mu   sync.Mutex // guards byID and what users counts
	byID map[string]*remains
}

// remains of one VE, as long as somebody is at them.
type remains struct {
	sync.Mutex
	users int // who have it locked, or wait for that
}

func newSweeper() *sweeper {
	return &sweeper{soon: make(chan struct{}, 1), byID: map[string]*remains{}}
}

// lock excludes others from a VE's remains.
func (s *sweeper) lock(id string) (unlock func()) {
	s.mu.Lock()
	one := s.byID[id]
	if one == nil {
		one = &remains{}
		s.byID[id] = one
	}
	one.users++
	s.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(s.byID, id)
		}
	}
}

// sweepSoon asks for a sweep; it does not wait.
func (h *Host) sweepSoon() {
	select {
	case h.sweeping.soon <- struct{}{}:
	default:
	}
}

// sweepAgain is how long a sweep that failed waits for the next one.
const sweepAgain = 10 * time.Second

// sweepWhenAsked sweeps until the host is closed.
func (h *Host) sweepWhenAsked() {
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-h.sweeping.soon:
		}
		if err := h.sweep(h.ctx); err != nil && h.ctx.Err() == nil {
			h.log.Error("what moved VEs left behind can't be removed just now", "error", err)
			time.AfterFunc(sweepAgain, h.sweepSoon)
		}
	}
}

// sweep removes what is on this host of VEs that the store says are elsewhere: those that have moved away, and those that
// were on their way here when the move was called off. It is how a host that was down meanwhile learns of it. One that can't be
// removed does not keep out others.
//
// Only what a VE's record accounts for is judged, or what a move has marked: a VE that is being launched or deleted here
// belongs to that operation.
func (h *Host) sweep(ctx context.Context) error {
	marked, err := h.marked() // before the records: who has a mark has a record until it is deleted
	if err != nil {
		return err
	}
	recs, err := h.ves.List(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, rec := range recs {
		delete(marked, rec.Value.ID)
		if h.mine(rec.Value) || !h.hasRemains(ctx, rec.Value.ID) {
			continue
		}
		failed = append(failed, h.sweepVE(ctx, rec.Value))
	}
	for _, v := range marked {
		failed = append(failed, h.sweepVE(ctx, v))
	}
	return errors.Join(failed...)
}

// markName is the file in a VE's directory that says whose it is, at both ends of a move: a VE may be deleted at one end while the
// other is down, and nothing else tells then what is left there.
const markName = "moving.json"

func (h *Host) mark(v VE) error {
	dir := h.veDir(v.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	half := filepath.Join(dir, "."+markName)
	if err := os.WriteFile(half, text, 0o600); err != nil {
		return err
	}
	return os.Rename(half, filepath.Join(dir, markName))
}

// marked are the VEs, by id, that were moved from here, to here, or nearly so.
func (h *Host) marked() (map[string]VE, error) {
	marks, err := filepath.Glob(h.veDir("*/" + markName))
	if err != nil {
		return nil, err
	}
	all := map[string]VE{}
	for _, mark := range marks {
		var v VE
		text, err := os.ReadFile(mark)
		if err != nil || json.Unmarshal(text, &v) != nil || h.veDir(v.ID) != filepath.Dir(mark) {
			continue // removed just now, or not by this program
		}
		all[v.ID] = v
	}
	return all, nil
}

// mine says whether a VE lives on this host, is on its way here, or still has memory here.
func (h *Host) mine(v VE) bool {
	return v.Host == h.cfg.Name || v.MovingTo == h.cfg.Name || v.MemoryAt == h.cfg.Name
}

func (h *Host) hasRemains(ctx context.Context, id string) bool {
	if _, err := os.Stat(h.veDir(id)); err == nil {
		return true
	}
	_, err := h.pool.Volume(ctx, id)
	return err == nil
}

func (h *Host) sweepVE(ctx context.Context, v VE) error {
	defer h.sweeping.lock(v.ID)()
	now, err := h.get(ctx, v.Name)
	if err == nil && h.mine(now) {
		return nil // it is back; or another one has its name here, and with it its cgroup
	} else if err != nil && api.KindOf(err) != api.NotFound {
		return err
	}
	h.arrivals.drop(func(_ string, in *arrival) bool { return in.ve.ID == v.ID })
	h.log.Info("removing what a ve that lives elsewhere, or no more, left here", "ve", v.Name, "host", now.Host)
	if err := h.clear(ctx, v); err != nil {
		return fmt.Errorf("ve %q: %w", v.Name, err)
	}
	return nil
}

// clear removes all of a VE from this host, in whatever state that is: processes, links, files, volume. Idempotent. The mark goes
// last, with the directory.
func (h *Host) clear(ctx context.Context, v VE) error {
	if err := h.takeDown(ctx, v); err != nil {
		return err
	}
	if err := h.pool.EndTransfer(ctx, v.ID); err != nil {
		return err
	}
	if err := h.pool.Delete(ctx, v.ID); err != nil {
		return err
	}
	return os.RemoveAll(h.veDir(v.ID))
}
