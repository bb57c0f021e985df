package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"polder/api"
	"polder/internal/migrate"
	"polder/internal/model"
)

// A volume is sent in rounds while the VE runs, until a round is small or they don't get smaller.
const (
	mostRounds = 5
	smallRound = 4 * api.MiB
)

// departure is the source's end of a move while it copies.
type departure struct {
	h       *Host
	r       *moveRun
	ve      VE
	spec    model.Spec
	session *migrate.Session
	round   int
}

// doCopy copies the VE to the target, until it stands still at both ends. What is left to decide is who goes on.
func (h *Host) doCopy(ctx context.Context, r *moveRun) error {
	done, err := h.turns.depart(ctx, r.State.Want.To)
	if err != nil {
		return err
	}
	defer done()
	d, err := h.depart(ctx, r)
	if err != nil {
		return err
	}
	defer d.session.Close()
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		<-d.session.Done() // the target has vanished, or this function has returned
		cancel(d.session.Err())
	}()
	if r.State.VE.State == api.Running {
		h.observe(within, r, d.ve)
	}
	switch {
	case r.State.keepsState():
		err = d.withMemory(within)
	case r.State.ran():
		err = d.cold(within)
	default:
		err = d.stopped(within)
	}
	r.State.Bytes = d.session.Transferred()
	r.State.clock(time.Now())
	return d.reason(ctx, err)
}

// reason is why the copy failed: what was cut short because the target vanished says only that it was, or which stream of
// theirs broke first, which may be before the session has noticed.
func (d *departure) reason(ctx context.Context, err error) error {
	kind := api.KindOf(err)
	cut := kind == api.Cancelled || kind == api.Unavailable || errors.Is(err, context.Canceled)
	if !cut || ctx.Err() != nil {
		return err
	}
	if gone := d.session.Err(); gone != nil {
		err = gone
	}
	return fmt.Errorf("copy to host %q: %w", d.r.State.Want.To, err)
}

// depart opens the session with the target.
func (h *Host) depart(ctx context.Context, r *moveRun) (*departure, error) {
	v, err := h.moving(ctx, r)
	if err != nil {
		return nil, err
	}
	spec, err := h.spec(ctx, v)
	if err != nil {
		return nil, err
	}
	peer, local, err := h.between(ctx, r.State.Want.To)
	if err != nil {
		return nil, err
	}
	secret := migrate.NewSecret()
	if err := h.tell(ctx, r.State.Want.To, movePath(r.ID, "open"), openRequest{VE: v.ID, Secret: secret, From: r.State.VE.Host}, nil); err != nil {
		return nil, err
	}
	session := migrate.Connect(r.ID, h.dialer(r.State.Want.To), migrate.SessionOptions{
		Secret: secret, Peer: peer, Local: local, Bandwidth: r.State.Want.BandwidthBytes,
	})
	return &departure{h: h, r: r, ve: v, spec: spec, session: session}, nil
}

// between are the addresses by which this host and another one reach each other.
func (h *Host) between(ctx context.Context, other string) (peer, local netip.Addr, err error) {
	for _, end := range []struct {
		name string
		addr *netip.Addr
	}{{other, &peer}, {h.cfg.Name, &local}} {
		s, err := h.cluster.Host(ctx, end.name)
		if err != nil {
			return peer, local, err
		}
		if *end.addr, err = underlayOf(s.Address); err != nil {
			return peer, local, err
		}
	}
	return peer, local, nil
}

// stopped copies the volume of a VE that does not run, and what its model keeps beside it.
func (d *departure) stopped(ctx context.Context) error {
	if err := d.carry(ctx); err != nil {
		return err
	}
	if _, err := d.sendRound(ctx, true); err != nil {
		return err
	}
	return d.finish(ctx)
}

// carry sends the files that the model keeps of the VE beside its volume.
func (d *departure) carry(ctx context.Context) error {
	impl, err := d.h.modelOf(d.ve.Model)
	if err != nil {
		return err
	}
	carrier, ok := impl.(model.Carrier)
	if !ok {
		return nil
	}
	files := map[string][]byte{}
	for _, name := range carrier.Carried(d.spec) {
		content, err := os.ReadFile(filepath.Join(d.spec.Dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		files[name] = content
	}
	return d.h.tell(ctx, d.r.State.Want.To, movePath(d.r.ID, "files"), filesRequest{Files: files}, nil)
}

// cold copies the volume while the VE runs, halts it in order, and copies what has changed.
func (d *departure) cold(ctx context.Context) error {
	if err := d.sendRounds(ctx); err != nil {
		return err
	}
	impl, err := d.h.modelOf(d.ve.Model)
	if err != nil {
		return err
	}
	d.r.State.Still, d.r.State.Way = time.Now().UTC(), "halted, copied, started"
	if d.r.State.VE.State == api.Paused {
		if err := impl.Resume(ctx, d.spec); err != nil {
			return err
		}
	}
	if err := d.h.set(ctx, d.ve.Name, func(v *VE) { v.State = api.Stopping }); err != nil {
		return err
	}
	if err := impl.Stop(ctx, d.spec, defaultGrace); err != nil {
		return err
	}
	return d.stopped(ctx)
}

// withMemory copies volume and memory; the two ends of the memory's copy run at the same time.
func (d *departure) withMemory(ctx context.Context) error {
	impl, err := d.h.mover(d.ve.Model)
	if err != nil {
		return err
	}
	mirrored := d.r.State.Mirrored
	if !mirrored {
		if err := d.sendRounds(ctx); err != nil {
			return err
		}
	}
	defer d.h.haste.begin()()
	var sent model.Sent
	err = d.bothEnds(ctx, "receive", receiveRequest{Mirrored: mirrored, Transfer: d.r.State.Transfer}, func(ctx context.Context) (err error) {
		sent, err = impl.Send(ctx, d.spec, d.session, model.SendOptions{
			Mode: d.r.State.Plan.Mode, MaxDowntime: time.Duration(d.r.State.Want.MaxDowntimeMS) * time.Millisecond,
			Bandwidth: d.r.State.Want.BandwidthBytes, PostCopy: d.r.State.follows(), Progress: d.r.Progress,
			Changes: d.diskChanges,
			Ahead: func(ctx context.Context) error {
				_, err := d.sendRound(ctx, false)
				return err
			},
			Still: func(ctx context.Context) error {
				if mirrored {
					return nil
				}
				if _, err := d.sendRound(ctx, true); err != nil {
					return err
				}
				return d.finish(ctx)
			},
		})
		return err
	})
	d.r.State.Still, d.r.State.Way = sent.Still.UTC(), sent.Way
	return err
}

// diskChanges is where the VE's disk differs from the base that the target makes its own of.
func (d *departure) diskChanges(ctx context.Context) ([]model.Span, bool, error) {
	list, known, err := d.h.pool.DiskChanges(ctx, d.r.State.Transfer)
	spans := make([]model.Span, len(list))
	for i, s := range list {
		spans[i] = model.Span(s)
	}
	return spans, known, err
}

// sendRounds sends the volume while the VE runs, so that little is left for when it does not.
func (d *departure) sendRounds(ctx context.Context) error {
	before := api.Bytes(-1)
	for d.round < mostRounds {
		n, err := d.sendRound(ctx, false)
		if err != nil {
			return err
		}
		if n <= smallRound || before >= 0 && n > before/2 {
			return nil
		}
		before = n
	}
	return nil
}

// sendRound sends the next round and returns its size, once the target has it on disk, or, of the last one, once it has come.
func (d *departure) sendRound(ctx context.Context, last bool) (api.Bytes, error) {
	n, transfer := d.round, d.r.State.Transfer
	d.round++
	transfer.Last = last
	before := d.session.Transferred()
	err := d.bothEnds(ctx, "round", roundRequest{Transfer: transfer, Round: n}, func(ctx context.Context) error {
		stream, err := d.session.Stream(ctx, roundStream(n))
		if err != nil {
			return err
		}
		defer stream.Close()
		stop := context.AfterFunc(ctx, func() { stream.Close() })
		defer stop()
		if err := d.h.pool.SendRound(ctx, transfer, n, stream); err != nil {
			return fmt.Errorf("send volume, round %d: %w", n, err)
		}
		return stream.CloseWrite()
	})
	return d.session.Transferred() - before, err
}

// bothEnds asks the target for its end of something, and does this end of it. The target cuts its streams before it answers
// why: so what broke here by that waits for the answer.
func (d *departure) bothEnds(ctx context.Context, path string, req any, here func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		err := d.h.tell(ctx, d.r.State.Want.To, movePath(d.r.ID, path), req, nil)
		if err != nil {
			cancel()
		}
		answer <- err
	}()
	err := here(ctx)
	kind := api.KindOf(err)
	cause := err != nil && kind != api.Unavailable && kind != api.Cancelled && !errors.Is(err, context.Canceled)
	if cause {
		cancel()
	}
	if there := <-answer; there != nil && !cause {
		return there
	}
	return err
}

func roundStream(n int) string { return fmt.Sprintf("volume-%d", n) }

// finish makes the rounds a volume at the target.
func (d *departure) finish(ctx context.Context) error {
	return d.h.tell(ctx, d.r.State.Want.To, movePath(d.r.ID, "finish"), roundRequest{Transfer: d.r.State.Transfer}, nil)
}

// undoCopy makes the VE go on at the source, as if nothing had happened.
func (h *Host) undoCopy(ctx context.Context, r *moveRun) error {
	v := r.State.VE // not read from the store: the VE goes on also while that does not answer
	if err := h.pool.EndTransfer(ctx, v.ID); err != nil {
		return err
	}
	if !r.State.ran() {
		return nil
	}
	impl, spec, err := h.placed(ctx, v)
	if err != nil {
		return err
	}
	if _, _, alive, err := impl.Adopt(ctx, spec); err != nil {
		return err
	} else if !alive {
		return h.standUp(ctx, r, v)
	}
	if h.halting(ctx, r) { // which can't be taken back: it ends, sooner or later
		if err := impl.Stop(ctx, spec, defaultGrace); err != nil {
			return err
		}
		return h.standUp(ctx, r, v)
	}
	if mover, ok := impl.(model.Mover); ok {
		p, err := mover.Keep(ctx, spec)
		if err != nil {
			return err
		}
		h.watch(v.Name, p)
	}
	return h.restore(ctx, r, func(v *VE) { v.State, v.Reason = r.State.VE.State, "" })
}

// halting says whether a cold move has told the VE to halt.
func (h *Host) halting(ctx context.Context, r *moveRun) bool {
	if r.State.Plan.Mode != api.Cold {
		return false
	}
	v, err := h.moving(ctx, r)
	return err == nil && v.State == api.Stopping || err != nil && !r.State.Still.IsZero()
}

// standUp starts a VE again that a cold move had halted. One that ended by itself, or with its host, is seen to by its
// restart policy afterwards, as what it was before the move.
func (h *Host) standUp(ctx context.Context, r *moveRun, v VE) error {
	if r.State.Plan.Mode == api.Cold && v.Boot == h.boot {
		return h.startVE(ctx, v)
	}
	return h.restore(ctx, r, func(v *VE) { v.State = r.State.VE.State })
}
