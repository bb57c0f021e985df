package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"polder/api"
)

// parallelMiB is what each of many containers holds.
const parallelMiB = 64

// measureParallelMoves moves many containers between three hosts: one after the other, and all at once.
func measureParallelMoves(ctx context.Context, m *moves) error {
	hosts := []string{"h1", "h2", "h3"}
	next := map[string]string{"h1": "h2", "h2": "h3", "h3": "h1"}
	name := func(i int) string { return "many" + strconv.Itoa(i+1) }
	for i := range m.parallel {
		if err := m.launch(ctx, name(i), serviceImage, hosts[i%3]); err != nil {
			return err
		}
		if _, err := m.ask(ctx, name(i), "hold", strconv.Itoa(parallelMiB), "1"); err != nil {
			return err
		}
	}
	var one, all, oneOutage, allOutage sample
	began := time.Now()
	for i := range m.parallel {
		r, err := m.moveBy(ctx, name(i), next)
		if err != nil {
			return err
		}
		oneOutage.add(float64(r.OutageMS))
	}
	one.add(time.Since(began).Seconds())
	var wg sync.WaitGroup
	var mu sync.Mutex // guards failed and allOutage
	var failed error
	began = time.Now()
	for i := range m.parallel {
		wg.Go(func() {
			r, err := m.moveBy(ctx, name(i), next)
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
			allOutage.add(float64(r.OutageMS))
		})
	}
	wg.Wait()
	all.add(time.Since(began).Seconds())
	if failed != nil {
		return failed
	}
	m.say("%d moves: %v s, one after the other %v s", m.parallel, all, one)
	s := m.report.section(fmt.Sprintf("%d moves between three hosts, containers of %d MiB", m.parallel, parallelMiB))
	s.columns = []string{"how", "total s", "outage of each ms", "n"}
	n := strconv.Itoa(m.parallel)
	s.cells = [][]string{
		{"all at once", all.String(), allOutage.String(), n},
		{"one after the other", one.String(), oneOutage.String(), n},
		{"ratio", number(all.median() / one.median()), number(allOutage.median() / oneOutage.median()), ""},
	}
	for i := range m.parallel {
		if err := m.done(ctx, name(i)); err != nil {
			return err
		}
	}
	return nil
}

// moveBy moves a VE to the next host by the API, without the bench's own prober.
func (m *moves) moveBy(ctx context.Context, name string, next map[string]string) (r api.MoveResult, err error) {
	host, err := m.host(ctx, name)
	if err != nil {
		return r, err
	}
	op, err := m.client.Move(ctx, name, api.MoveRequest{To: next[host], Mode: api.Live})
	op, err = m.finish(ctx, op, err)
	if err != nil {
		return r, fmt.Errorf("move %s: %w", name, err)
	}
	return r, decode(string(op.Result), &r)
}
