package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"polder/api"
	"polder/internal/model"
)

// syncEvery is how often what the source writes is put on the disk, so that little is left of that when the VE stands still.
const syncEvery = time.Second

// Receive starts a QEMU of the same machine that waits for what Send sends. Its disk and memory listen on ports of their own, for
// TLS with the session's key only.
func (m *Model) Receive(ctx context.Context, ve model.Spec, s model.Session, o model.ReceiveOptions) error {
	if err := m.receive(ctx, ve, s, o); err != nil {
		if ctx.Err() != nil {
			err = cutOff(ctx)
		}
		return fmt.Errorf("receive vm %q: %w", ve.Name, err)
	}
	return nil
}

// receiving is one Receive.
type receiving struct {
	*monitor
	ve      model.Spec
	session model.Session
	wire    *wire
}

func (m *Model) receive(ctx context.Context, ve model.Spec, s model.Session, o model.ReceiveOptions) (err error) {
	ctx, w, err := talk(ctx, s)
	if err != nil {
		return err
	}
	defer func() { w.close(err) }()
	if ve.Root, err = o.Volume(ctx); err != nil {
		return err
	}
	x := &receiving{ve: ve, session: s, wire: w}
	first, err := w.hear(ctx, "hello")
	if err != nil {
		return err
	}
	if first.Hello == nil || first.Hello.Version > moveVersion {
		return api.Errorf(api.Unsupported, "the other host's polder is newer: use the same here")
	}
	if err := m.await(ctx, ve, *first.Hello); err != nil {
		return err
	}
	if x.monitor, err = m.openMonitor(ctx, ve); err != nil {
		return err
	}
	defer x.Close()
	defer context.AfterFunc(ctx, x.Close)()
	go func() {
		<-x.Done()
		w.fail(startFailure(ve, errors.New("it ended")))
	}()
	ready, err := x.listen(ctx, *first.Hello)
	if err != nil {
		return err
	}
	if err := w.say(note{Kind: "ready", Ready: ready}); err != nil {
		return err
	}
	if ready.Disk == diskDelta {
		if err := x.delta(ctx); err != nil {
			return err
		}
	}
	return x.complete(ctx, first.Hello.PostCopy)
}

// await starts a QEMU that waits for the VE.
func (m *Model) await(ctx context.Context, ve model.Spec, h hello) error {
	if pid, err := holder(ve); err != nil {
		return err
	} else if pid != 0 {
		return api.Errorf(api.Conflict, "vm %q runs here already (pid %d)", ve.Name, pid)
	}
	offer := m.offer()
	offer.Incoming = true
	if h.Accelerator != accelName(offer.KVM) {
		return unlike(h.Accelerator, accelName(offer.KVM))
	}
	machine, err := settled(h.Machine)
	if err != nil {
		return err
	}
	if err := m.clean(ctx, ve); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(ve.Dir, "machine.json"), machine); err != nil {
		return err
	}
	if err := m.prepare(ctx, ve); err != nil {
		return err
	}
	if err := bring(ve, h); err != nil {
		return err
	}
	if err := writeJSON(movingFile(ve), moving{Version: moveVersion, Target: true, Paused: h.Paused, PostCopy: h.PostCopy}); err != nil {
		return err
	}
	if h.PostCopy {
		if err := m.allowFaults(ve.IDBase); err != nil {
			return err
		}
	}
	w, err := m.launch(ctx, shut(ve), offer)
	if err == nil {
		err = answers(ctx, ve, w)
	}
	if err != nil {
		return errors.Join(err, m.tidyAfter(ctx, ve, w))
	}
	hasten(ve)
	return nil
}

// shut is a VE whose NICs' gates are shut when it starts.
func shut(ve model.Spec) model.Spec {
	ve.NICs = append([]model.NIC(nil), ve.NICs...)
	for i := range ve.NICs {
		ve.NICs[i].Shut = true
	}
	return ve
}

// bring writes the files that come along. They are of the same size there as here: QEMU compares.
func bring(ve model.Spec, h hello) error {
	for path, content := range map[string][]byte{varsFile(ve): h.Vars, seedFile(ve): h.Seed} {
		if content == nil {
			continue
		}
		if err := os.WriteFile(path+".new", content, 0o600); err != nil {
			return err
		}
		if err := os.Chown(path+".new", int(ve.IDBase), int(ve.IDBase)); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return appendLog(ve.LogPath(), h.Log)
}

// listen makes QEMU ready for the source.
func (x *receiving) listen(ctx context.Context, h hello) (*ready, error) {
	if err := writeKey(x.ve, x.session.Secret()); err != nil {
		return nil, err
	}
	local := x.session.Local()
	diskPort, err := x.listenDisk(ctx, local)
	if err != nil {
		return nil, err
	}
	for _, command := range []struct {
		name string
		args map[string]any
	}{
		{"migrate-set-capabilities", moveCapabilities(h.PostCopy)},
		{"migrate-set-parameters", map[string]any{"tls-creds": moveKey, "multifd-channels": h.Channels}},
		{"migrate-incoming", map[string]any{"uri": "tcp:" + net.JoinHostPort(local.String(), "0")}},
	} {
		if err := x.do(ctx, command.name, command.args); err != nil {
			return nil, err
		}
	}
	got, err := x.migration(ctx)
	if err != nil {
		return nil, err
	}
	if len(got.Listens) == 0 {
		return nil, errors.New("qemu does not say where it listens")
	}
	r := &ready{DiskPort: diskPort, MemoryPort: got.Listens[0].Port, Disk: diskFull}
	backed, err := x.backed(ctx)
	switch {
	case err != nil:
		return nil, err
	case x.ve.Root.Format == "raw" && h.Format == "raw":
		r.Disk = diskDelta
	case backed && h.Backed:
		r.Disk = diskTop
	}
	return r, nil
}

// listenDisk exports the disk. QEMU can't tell a port that it chose itself, so it is given the socket.
func (x *receiving) listenDisk(ctx context.Context, local netip.Addr) (port string, err error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
	if err != nil {
		return "", err
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := x.do(ctx, "object-add", credentials(x.ve, "server")); err != nil {
		return "", err
	}
	if err := x.GetFD(ctx, memoryPlace, f); err != nil {
		return "", err
	}
	if err := x.do(ctx, "nbd-server-start", map[string]any{
		"addr":      map[string]any{"type": "fd", "data": map[string]any{"str": memoryPlace}},
		"tls-creds": moveKey,
	}); err != nil {
		return "", err
	}
	err = x.do(ctx, "block-export-add", map[string]any{"type": "nbd", "id": moveExport, "node-name": diskFormat, "name": diskFormat, "writable": true})
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), err
}

func (x *receiving) delta(ctx context.Context) error {
	s, err := x.session.Stream(ctx, diskStream)
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	f, err := os.OpenFile(x.ve.Root.Disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = receiveDelta(ctx, s, f)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// complete waits until everything has arrived.
func (x *receiving) complete(ctx context.Context, postCopy bool) error {
	f, err := os.OpenFile(x.ve.Root.Disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	still, err := x.syncUntil(ctx, f)
	if err != nil {
		return err
	}
	// What the VE knows to be on its disk must be on this one too, whatever happens to this host.
	synced := make(chan error, 1)
	go func() { synced <- errors.Join(f.Sync(), appendLog(x.ve.LogPath(), still.Log)) }()
	err = x.takeOver(ctx, postCopy)
	if err := errors.Join(err, <-synced); err != nil {
		return err
	}
	if err := f.Sync(); err != nil { // of what the mirror still had to bring: most often nothing, which takes no time
		return err
	}
	if _, err := x.status(ctx); err != nil { // with post-copy nothing else has told that QEMU is still there
		return err
	}
	if err := x.wire.say(note{Kind: "whole"}); err != nil {
		return err
	}
	_, err = x.wire.hear(ctx, "done")
	return err
}

// takeOver makes the disk the VE's own, and waits for the last of its memory, unless that follows.
func (x *receiving) takeOver(ctx context.Context, postCopy bool) error {
	if _, err := x.wire.hear(ctx, "alone"); err != nil {
		return err
	}
	// While something writes to the disk from outside, the VE's own disk device could not take it over.
	if err := x.do(ctx, "nbd-server-stop", nil); err != nil {
		return err
	}
	if err := x.wire.say(note{Kind: "go"}); err != nil || postCopy {
		return err
	}
	return x.await(ctx, 5*time.Millisecond, func() (bool, error) {
		got, err := x.migration(ctx)
		if err == nil {
			err = got.failed()
		}
		return got.Status == "completed", err
	})
}

// syncUntil puts what arrives on the disk until the VE stands still.
func (x *receiving) syncUntil(ctx context.Context, f *os.File) (note, error) {
	end := syncing(f, x.wire.fail)
	still, err := x.wire.hear(ctx, "still")
	return still, errors.Join(err, end())
}

// syncing puts what is written to a file on the disk again and again, until end, which gives what failed; failed is called then, too.
func syncing(f *os.File, failed func(error)) (end func() error) {
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ticker := time.NewTicker(syncEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if err := f.Sync(); err != nil {
					failed(err)
					ended <- err
					return
				}
			case <-done:
				ended <- nil
				return
			}
		}
	}()
	return func() error {
		close(done)
		return <-ended
	}
}

// unlike is the refusal of a move between accelerators.
func unlike(theirs, ours string) error {
	return api.Errorf(api.Precondition, "the VE runs by %s, this host offers %s: a running system can't change its CPU; move it cold", theirs, ours)
}
