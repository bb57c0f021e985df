package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"polder/api"
)

// Patience with a server that went away while a stream was open: long enough for a daemon to be restarted.
const (
	patience   = 15 * time.Second
	firstPause = 50 * time.Millisecond
	longPause  = time.Second
)

// Operations lists operations, newest first.
func (c *Client) Operations(ctx context.Context) (ops []api.Operation, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/operations", nil, &ops)
	return ops, err
}

// Operation finds one by id.
func (c *Client) Operation(ctx context.Context, id string) (op api.Operation, err error) {
	err = c.call(ctx, http.MethodGet, operationPath(id), nil, &op)
	return op, err
}

// CancelOperation asks an operation to stop and to undo what it did; it does not wait for that.
func (c *Client) CancelOperation(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodPost, operationPath(id)+"/cancel", nil, nil)
}

// Wait blocks until an operation is final, and returns that state; each (may be nil) is called with every change. An
// operation that failed is no error of Wait's: see api.Operation.Error. When the server goes away meanwhile, Wait looks
// for it again for 15 seconds.
func (c *Client) Wait(ctx context.Context, id string, each func(api.Operation)) (api.Operation, error) {
	var last api.Operation
	// Somebody has just started the operation, so the server is only away if it cannot be reached at first.
	err := c.persist(ctx, time.Now(), func(alive func()) (bool, error) {
		err := c.listen(ctx, operationPath(id)+"/events", 0, alive, func(e sseEvent) error {
			if e.name != "operation" {
				return nil
			}
			var op api.Operation
			if err := json.Unmarshal(e.data, &op); err != nil {
				return api.Errorf(api.Internal, "watch operation %s: %w", id, err)
			}
			last = op
			if each != nil {
				each(op)
			}
			return nil
		})
		return last.State.Final(), err
	})
	return last, err
}

// Events calls each with what happens in the cluster after the event `after` (0: from now on), until ctx is done or
// each returns an error, which it returns. It reconnects like Wait; once it has seen an event, it misses none by that.
func (c *Client) Events(ctx context.Context, after int64, each func(api.Event) error) error {
	var stop error
	err := c.persist(ctx, time.Time{}, func(alive func()) (bool, error) {
		err := c.listen(ctx, "/v1/events", after, alive, func(e sseEvent) error {
			var event api.Event
			if err := json.Unmarshal(e.data, &event); err != nil {
				return api.Errorf(api.Internal, "read events: %w", err)
			}
			after = event.ID
			stop = each(event)
			return stop
		})
		return stop != nil, err
	})
	if stop != nil {
		return stop
	}
	return err
}

// persist calls attempt until it is done or fails for good. A server that cannot be reached is tried again until
// patience is up since it was last seen, which attempt tells by alive; one that was never seen is given up at once.
func (c *Client) persist(ctx context.Context, seen time.Time, attempt func(alive func()) (done bool, err error)) error {
	pause := firstPause
	for {
		done, err := attempt(func() { seen, pause = time.Now(), firstPause })
		switch {
		case done:
			return nil
		case ctx.Err() != nil:
			return c.failed(ctx, ctx.Err())
		case err == nil:
			err = api.Errorf(api.Unavailable, "connection to %s ended early", c.url)
		case api.KindOf(err) != api.Unavailable:
			return err
		}
		if seen.IsZero() || time.Since(seen) > patience {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, longPause)
	}
}

// listen reads one event stream until it ends; it calls alive when the stream has opened and with every event.
func (c *Client) listen(ctx context.Context, path string, after int64, alive func(), each func(sseEvent) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return api.Errorf(api.Invalid, "request %s: %w", path, err)
	}
	if after > 0 {
		req.Header.Set("Last-Event-ID", strconv.FormatInt(after, 10))
	}
	res, err := c.do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	alive()
	err = readEvents(res.Body, func(e sseEvent) error {
		alive()
		if e.name != "problem" {
			return each(e)
		}
		var p api.Problem
		if err := json.Unmarshal(e.data, &p); err != nil {
			return api.Errorf(api.Internal, "read events: %w", err)
		}
		return p.Err()
	})
	if err != nil && !errors.As(err, new(*api.Error)) {
		err = c.failed(ctx, err)
	}
	return err
}

func operationPath(id string) string { return "/v1/operations/" + url.PathEscape(id) }
