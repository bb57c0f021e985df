package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"polder/api"
)

// measureAPI times requests to both APIs with many VEs that do not run, one request after the other on connections that stay
// open, answers read to their end.
func measureAPI(ctx context.Context, b *bench) error {
	name := func(i int) string { return "stopped" + strconv.Itoa(i+1) }
	b.say("making %d stopped VEs on either side", b.stopped)
	err := each(ctx, b.stopped, func(ctx context.Context, i int) error {
		op, err := b.client.Launch(ctx, api.LaunchRequest{Name: name(i), Image: idleImage, NoStart: true})
		_, err = b.finish(ctx, op, err)
		return err
	})
	if err != nil {
		return err
	}
	err = each(ctx, b.stopped, func(ctx context.Context, i int) error { return b.incus.create(ctx, idleImage, name(i), false) })
	if err != nil {
		return err
	}
	middle := url.PathEscape(name(b.stopped / 2))
	theirs := func(path string) func(context.Context) (int, error) {
		return func(ctx context.Context) (int, error) { return b.incus.get(ctx, path, nil) }
	}
	requests := []request{
		{name: "list", get: b.plainGet("/v1/ves")},
		{name: "get", get: b.plainGet("/v1/ves/" + middle)},
		{name: "list, recursion=1", get: theirs("/1.0/instances?recursion=1")},
		{name: "list, recursion=2", get: theirs("/1.0/instances?recursion=2"), rare: true},
		{name: "get", get: theirs("/1.0/instances/" + middle)},
	}
	for i := -1; i < b.requests; i++ { // the first round only warms up
		for j := range requests {
			if r := &requests[j]; r.rare && i > 0 && i%5 != 0 {
				continue
			} else if err := r.time(ctx, i >= 0); err != nil {
				return err
			}
		}
	}
	list, get, shallow, deep, theirGet := requests[0], requests[1], requests[2], requests[3], requests[4]
	s := b.report.section(strconv.Itoa(b.stopped) + " stopped VEs by the API")
	s.add(row{what: "list, with state and addresses", unit: "ms", ours: list.took, peer: "Incus, recursion=2", theirs: deep.took, aim: atMost("≤ 1/5", list.took, deep.took, 5)})
	s.add(row{what: "list", unit: "ms", ours: list.took, peer: "Incus, recursion=1", theirs: shallow.took, aim: atMost("≤ 1/5", list.took, shallow.took, 5)})
	s.add(row{what: "get", unit: "ms", ours: get.took, peer: "Incus", theirs: theirGet.took, aim: atMost("≤ 1/5", get.took, theirGet.took, 5)})
	s.note("Answers of %d, %d (recursion=1) and %d (recursion=2) kilobytes. recursion=1 leaves out the state and the addresses, which Polder's list has.",
		list.size/1000, shallow.size/1000, deep.size/1000)
	return nil
}

// request is one kind of request, with what it took in milliseconds.
type request struct {
	name string
	get  func(ctx context.Context) (int, error)
	rare bool // it takes seconds: only in every fifth round
	took sample
	size int
}

func (r *request) time(ctx context.Context, counts bool) (err error) {
	began := time.Now()
	r.size, err = r.get(ctx)
	if took := time.Since(began); counts {
		r.took.add(milliseconds(took))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	return nil
}

// plainGet asks Polder's API as incus.get asks Incus': read whole, not decoded.
func (b *bench) plainGet(path string) func(context.Context) (int, error) {
	var dialer net.Dialer
	c := &http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", b.socket())
		},
	}}
	return func(ctx context.Context) (int, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://polder"+path, nil)
		if err != nil {
			return 0, err
		}
		res, err := c.Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", res.Status, data)
		}
		return len(data), err
	}
}
