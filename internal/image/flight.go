package image

import (
	"context"
	"errors"
	"sync"
)

// flights are transfers under way: whoever wants what is on its way already waits for it.
type flights struct {
	mu     sync.Mutex
	flying map[string]*flight // guarded by mu
}

type flight struct {
	landed   chan struct{} // closed at the end
	err      error         // set before
	watchers []Progress    // guarded by flights.mu
}

// do runs f, or waits for the one that runs for key. One whose own caller went away is taken over by a caller that waits.
func (s *flights) do(ctx context.Context, key string, progress Progress, f func(context.Context, Progress) error) error {
	for {
		flight, first := s.join(key, progress)
		if first {
			flight.err = f(ctx, func(done, total int64, unit string) { s.report(flight, done, total, unit) })
			s.leave(key)
			close(flight.landed)
			return flight.err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-flight.landed:
		}
		if ctx.Err() != nil || !errors.Is(flight.err, context.Canceled) && !errors.Is(flight.err, context.DeadlineExceeded) {
			return flight.err
		}
	}
}

func (s *flights) join(key string, progress Progress) (f *flight, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f = s.flying[key]
	if f == nil {
		f, first = &flight{landed: make(chan struct{})}, true
		if s.flying == nil {
			s.flying = map[string]*flight{}
		}
		s.flying[key] = f
	}
	if progress != nil {
		f.watchers = append(f.watchers, progress)
	}
	return f, first
}

func (s *flights) leave(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flying, key)
}

func (s *flights) report(f *flight, done, total int64, unit string) {
	s.mu.Lock()
	watchers := f.watchers
	s.mu.Unlock()
	for _, watch := range watchers {
		watch(done, total, unit)
	}
}
