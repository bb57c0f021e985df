package host

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// How many moves go on at once. More would not be sooner done, and each would have less of the link to keep its outage.
const (
	movesFrom = 4 // leave one host
	movesTo   = 4 // come to one host
	movesLink = 2 // go from one host to one other
)

// turns are the moves' turns at this host. A move takes them in one order (from, link, to), so that moves in both
// directions never wait for each other in a circle.
type turns struct {
	from, to *semaphore.Weighted

	mu    sync.Mutex // guards links
	links map[string]*semaphore.Weighted
}

func newTurns() *turns {
	return &turns{from: semaphore.NewWeighted(movesFrom), to: semaphore.NewWeighted(movesTo), links: map[string]*semaphore.Weighted{}}
}

// depart waits for a move's turn to leave for a host.
func (t *turns) depart(ctx context.Context, to string) (done func(), err error) {
	t.mu.Lock()
	link := t.links[to]
	if link == nil {
		link = semaphore.NewWeighted(movesLink)
		t.links[to] = link
	}
	t.mu.Unlock()
	if err := t.from.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	if err := link.Acquire(ctx, 1); err != nil {
		t.from.Release(1)
		return nil, err
	}
	return func() {
		link.Release(1)
		t.from.Release(1)
	}, nil
}
