package store

import (
	"context"
	"time"
)

type patience struct{}

// Patience marks a context: who asks under it wants to hear within d that the store does not answer, such as a person at a command.
// Operations are better served by waiting as long as it takes to choose a leader on slow hosts.
func Patience(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, patience{}, d)
}

// patienceOf is how long a request under ctx may take.
func patienceOf(ctx context.Context) time.Duration {
	if d, ok := ctx.Value(patience{}).(time.Duration); ok && d < requestTimeout {
		return d
	}
	return requestTimeout
}
