package cluster

import (
	"context"
	"log/slog"
	"os"
	"sync"

	"polder/api"
	"polder/internal/store"
)

// beside is this host's member of the store, where that runs beside a store that was opened as a client: on a host that became a
// member while it ran. Safe for concurrent use.
type beside struct {
	log *slog.Logger

	mu       sync.Mutex // guards what follows
	running  *store.RunningMember
	starting bool
	cancel   context.CancelFunc // of the start
	wg       sync.WaitGroup
}

// start runs the member, unless it runs or is being started; it does not wait for that. A copy of an earlier membership, which
// the cluster has ended, is dropped.
func (b *beside) start(o store.Options) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running != nil || b.starting {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.starting, b.cancel = true, cancel
	b.wg.Go(func() {
		defer cancel()
		running, err := store.RunMember(ctx, o)
		switch {
		case api.KindOf(err) == api.Precondition:
			err = dropCopy(o.Dir)
		case err == nil:
			b.log.Info("this host copies the store")
		}
		if err != nil && ctx.Err() == nil {
			b.log.Warn("this host's member of the store does not start", "error", err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.running, b.starting = running, false
	})
}

// runs says whether the member runs, or is being started. One that failed is cleared away.
func (b *beside) runs() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running != nil {
		select {
		case <-b.running.Failed():
			b.close()
		default:
		}
	}
	return b.running != nil || b.starting
}

// stop blocks until the member has stopped, if there is one; it can be started again.
func (b *beside) stop() {
	b.mu.Lock()
	if b.starting {
		b.cancel()
	}
	b.mu.Unlock()
	b.wg.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.close()
}

// close stops what runs. b.mu is held.
func (b *beside) close() {
	if b.running == nil {
		return
	}
	if err := b.running.Close(); err != nil {
		b.log.Warn("the store's member was not closed in order", "error", err)
	}
	b.running = nil
}

func dropCopy(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return api.Errorf(api.Internal, "drop this host's copy of the store: %w", err)
	}
	return nil
}
