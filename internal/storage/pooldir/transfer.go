package pooldir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"polder/api"
	"polder/internal/storage"
)

// Trees is the part of a Driver that sends trees. Paths are absolute; what it makes in a volume's directory has a name that begins with a dot.
type Trees interface {
	SendBaseTree(ctx context.Context, path string, w io.Writer) error
	// ReceiveBaseTree fills the empty tree at path.
	ReceiveBaseTree(ctx context.Context, path string, r io.Reader) error
	// SendTree writes round n of the volume in dir. base is the path of t.Base, "" when t has none.
	SendTree(ctx context.Context, dir, base string, t storage.Transfer, n int, w io.Writer) error
	// ReceiveTree reads round n into dir, which round 0 finds with nothing in it.
	ReceiveTree(ctx context.Context, dir, base string, t storage.Transfer, n int, r io.Reader) error
	// FinishTree makes dir/root of what was received, at once, durable, and as the last thing.
	FinishTree(ctx context.Context, dir string, t storage.Transfer) error
	// EndTree forgets what the driver remembers of a transfer, at either end; meta is that of the volume in dir, if it is there.
	EndTree(ctx context.Context, dir string, meta Meta) error
}

// transfers is what is remembered of volumes on their way. Lost with the process: a transfer begins again then.
type transfers struct {
	mu       sync.Mutex
	received map[string]int          // directory → the last round that came whole; guarded by mu
	sums     map[string]*blockRounds // directory → what was sent of a disk that has no reflinks; guarded by mu
	tried    map[string]tried        // directory → what was sent of one that has; guarded by mu
}

func (t *transfers) round(dir string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.received[dir]
	if !ok {
		return -1
	}
	return n
}

func (t *transfers) came(dir string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.received == nil {
		t.received = map[string]int{}
	}
	t.received[dir] = n
}

func (t *transfers) forget(dir string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.received, dir)
	delete(t.sums, dir)
	delete(t.tried, dir)
}

// sending is the key of the lock that rounds at the sender hold: nothing else waits for them.
func sending(dir string) string { return dir + "/.send" }

// baseOf finds the base of a transfer; "": it has none.
func (p *Pool) baseOf(ctx context.Context, t storage.Transfer) (string, error) {
	if t.Base == "" {
		return "", nil
	}
	return p.Base(ctx, t.Base, t.Kind)
}

func (p *Pool) checkTransfer(t storage.Transfer, n int) error {
	if err := checkID(t.ID); err != nil {
		return err
	}
	if _, err := basePayload(t.Kind); err != nil {
		return err
	}
	if n < 0 || t.Size < 0 {
		return api.Errorf(api.Invalid, "volume %s: round %d, size %s", t.ID, n, t.Size)
	}
	return nil
}

// SendRound is storage.Sender's.
func (p *Pool) SendRound(ctx context.Context, t storage.Transfer, n int, w io.Writer) error {
	if err := p.checkTransfer(t, n); err != nil {
		return err
	}
	dir := p.VolumeDir(t.ID)
	release, err := p.locks.acquire(ctx, sending(dir))
	if err != nil {
		return err
	}
	defer release()
	v, err := p.Volume(ctx, t.ID)
	if err != nil {
		return err
	}
	if v.Kind != t.Kind {
		return api.Errorf(api.Invalid, "send volume %s of pool %q: it is a %s, not a %s", t.ID, p.name, v.Kind, t.Kind)
	}
	base, err := p.baseOf(ctx, t)
	if err != nil {
		return err
	}
	if t.Kind == storage.Tree {
		err = p.driver.SendTree(ctx, dir, base, t, n, w)
	} else {
		err = p.sendDisk(ctx, dir, base, v, n, w)
	}
	if err != nil {
		return p.Explain(fmt.Errorf("send round %d of volume %s of pool %q: %w", n, t.ID, p.name, err))
	}
	return nil
}

// ReceiveRound is storage.Sender's.
func (p *Pool) ReceiveRound(ctx context.Context, t storage.Transfer, n int, r io.Reader) error {
	if err := p.checkTransfer(t, n); err != nil {
		return err
	}
	dir := p.VolumeDir(t.ID)
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return err
	}
	defer release()
	if payloadIn(dir) != "" {
		return api.Errorf(api.Exists, "receive volume %s in pool %q: it is there already: delete it first", t.ID, p.name)
	}
	p.inUse.RLock()
	base, err := p.baseOf(ctx, t)
	if err == nil && n == 0 {
		err = p.beginReceive(ctx, dir, t)
	}
	p.inUse.RUnlock()
	if err == nil && n > 0 && p.transfers.round(dir) < n-1 {
		err = api.Errorf(api.Precondition, "round %d has not come: begin with round 0", n-1)
	}
	if err == nil && t.Kind == storage.Tree {
		err = p.driver.ReceiveTree(ctx, dir, base, t, n, r)
	} else if err == nil {
		err = p.receiveDisk(ctx, dir, base, t, n, r)
	}
	if err != nil {
		return p.Explain(fmt.Errorf("receive round %d of volume %s in pool %q: %w", n, t.ID, p.name, err))
	}
	p.transfers.came(dir, n)
	return nil
}

// beginReceive makes the directory of a volume that is about to come. From then on its base is not deleted, where it is needed.
func (p *Pool) beginReceive(ctx context.Context, dir string, t storage.Transfer) error {
	if err := p.endTransfer(ctx, dir); err != nil { // of an earlier one that was cut off
		return err
	}
	if err := makeDir(dir, t.Kind); err != nil {
		return err
	}
	return WriteMeta(dir, Meta{Kind: t.Kind, Base: t.Base, Size: t.Size})
}

// FinishReceive is storage.Sender's.
func (p *Pool) FinishReceive(ctx context.Context, t storage.Transfer) (storage.Volume, error) {
	if err := p.checkTransfer(t, 0); err != nil {
		return storage.Volume{}, err
	}
	dir := p.VolumeDir(t.ID)
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return storage.Volume{}, err
	}
	defer release()
	if v, err := p.Volume(ctx, t.ID); err == nil || api.KindOf(err) != api.NotFound {
		return v, err
	}
	if p.transfers.round(dir) < 0 {
		return storage.Volume{}, api.Errorf(api.Precondition, "finish volume %s in pool %q: no round of it has come", t.ID, p.name)
	}
	if t.Kind == storage.Tree {
		err = p.driver.FinishTree(ctx, dir, t)
	} else {
		err = p.finishDisk(ctx, dir, t)
	}
	if err != nil {
		return storage.Volume{}, p.Explain(fmt.Errorf("finish volume %s in pool %q: %w", t.ID, p.name, err))
	}
	p.transfers.forget(dir)
	if meta, err := ReadMeta(dir); err == nil {
		_ = p.dropHidden(ctx, dir, meta) // the volume is there; what is left, Tidy finds
	}
	return p.Volume(ctx, t.ID)
}

// EndTransfer is storage.Sender's.
func (p *Pool) EndTransfer(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	dir := p.VolumeDir(id)
	for _, key := range []string{sending(dir), dir} {
		release, err := p.locks.acquire(ctx, key)
		if err != nil {
			return err
		}
		defer release()
	}
	if err := p.endTransfer(ctx, dir); err != nil {
		return fmt.Errorf("end the transfer of volume %s of pool %q: %w", id, p.name, err)
	}
	return nil
}

// endTransfer removes a volume that has not come whole, and what is kept beside one that is there.
func (p *Pool) endTransfer(ctx context.Context, dir string) error {
	p.transfers.forget(dir)
	meta, err := ReadMeta(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := p.driver.EndTree(ctx, dir, meta); err != nil {
		return err
	}
	if payloadIn(dir) == "" {
		return p.discard(ctx, dir)
	}
	return p.dropHidden(ctx, dir, meta)
}

// dropHidden removes what has a name in dir that begins with a dot.
func (p *Pool) dropHidden(ctx context.Context, dir string, meta Meta) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var problems []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			problems = append(problems, p.driver.Drop(ctx, filepath.Join(dir, e.Name()), meta))
		}
	}
	return errors.Join(problems...)
}

// MakeDisk is storage.Sender's.
func (p *Pool) MakeDisk(ctx context.Context, t storage.Transfer) (storage.Volume, error) {
	if err := p.checkTransfer(t, 0); err != nil {
		return storage.Volume{}, err
	}
	if t.Base != "" {
		return p.Clone(ctx, t.Base, storage.Disk, t.ID, t.Size)
	}
	dir := p.VolumeDir(t.ID)
	release, err := p.locks.acquire(ctx, dir)
	if err != nil {
		return storage.Volume{}, err
	}
	defer release()
	v, err := p.Volume(ctx, t.ID)
	switch {
	case err == nil && v.Kind != storage.Disk:
		return storage.Volume{}, api.Errorf(api.Exists, "make disk %s in pool %q: it is there already as a %s", t.ID, p.name, v.Kind)
	case err == nil || api.KindOf(err) != api.NotFound:
		return v, err
	}
	if err := p.makeEmptyDisk(ctx, dir, t); err != nil {
		_ = p.discard(context.WithoutCancel(ctx), dir)
		return storage.Volume{}, p.Explain(fmt.Errorf("make disk %s in pool %q: %w", t.ID, p.name, err))
	}
	return p.Volume(ctx, t.ID)
}

func (p *Pool) makeEmptyDisk(ctx context.Context, dir string, t storage.Transfer) error {
	if err := p.beginReceive(ctx, dir, storage.Transfer{ID: t.ID, Kind: storage.Disk, Size: t.Size}); err != nil {
		return err
	}
	half := filepath.Join(dir, halfDisk)
	f, err := createDisk(half, false)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(t.Size)); err != nil {
		return err
	}
	return p.publishDisk(f, dir, RawName)
}
