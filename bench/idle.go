package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"polder/api"
)

// idleTime is how long the daemons are watched while nothing happens.
const idleTime = time.Minute

// atOnce is how many are made at the same time, on either side.
const atOnce = 2

// side is one contestant with many containers.
type side struct {
	daemon int // its process
	start  func(ctx context.Context, name string) error
	remove func(ctx context.Context, name string) error

	before, after, added float64 // bytes: what all but the containers use, and what the containers add
	processes            int     // how many came with the containers
	kernel               float64 // bytes less available, per container
	memory               memory
	cpu                  float64 // share of one core, in percent
	took                 time.Duration
}

// measureIdle starts many containers that sleep, and looks at what each costs besides its own processes. One side after
// the other: together they would share pages.
func measureIdle(ctx context.Context, b *bench) error {
	ours, err := b.polderSide(ctx)
	if err != nil {
		return err
	}
	theirs, err := b.incusSide()
	if err != nil {
		return err
	}
	for _, s := range []*side{ours, theirs} {
		if err := s.measure(ctx, b.idle); err != nil {
			return err
		}
	}
	n := strconv.Itoa(b.idle)
	mb := func(v float64) sample { return sample{v / megabyte} }
	s := b.report.section(n + " idle containers")
	s.add(row{what: "memory beside each container", unit: "MB PSS", ours: mb(ours.added), peer: "Incus", theirs: mb(theirs.added), aim: below("0.5 MB", mb(ours.added), 0.5)})
	s.add(row{what: "daemon with " + n, unit: "MB RSS", ours: mb(ours.memory.rss), peer: "incusd", theirs: mb(theirs.memory.rss), aim: below("120 MB", mb(ours.memory.rss), 120)})
	s.add(row{what: "daemon with " + n, unit: "MB PSS", ours: mb(ours.memory.pss), peer: "incusd", theirs: mb(theirs.memory.pss)})
	s.add(row{what: "daemon's CPU while nothing happens", unit: "% of a core", ours: sample{ours.cpu}, peer: "incusd", theirs: sample{theirs.cpu}})
	s.add(row{what: "processes beside the containers", unit: "", ours: sample{float64(ours.processes)}, peer: "Incus", theirs: sample{float64(theirs.processes)}})
	s.add(row{what: "less memory available, each", unit: "MB", ours: mb(ours.kernel), peer: "Incus", theirs: mb(theirs.kernel)})
	s.add(row{what: "time to start them, two at once", unit: "s", ours: sample{ours.took.Seconds()}, peer: "Incus", theirs: sample{theirs.took.Seconds()}})
	s.note("The containers run a static busybox that sleeps, in an image of nothing else; CPU over %.0f s.", idleTime.Seconds())
	s.note("Beside: all processes in the daemon's own network and pid namespaces (daemon, dnsmasq, monitors), with %s containers less without, divided by %s.", n, n)
	s.note("Less memory available: MemAvailable before and after; has the container's own processes in it, and what the kernel keeps for it.")
	return nil
}

func (s *side) measure(ctx context.Context, n int) (err error) {
	name := func(i int) string { return "idle" + strconv.Itoa(i+1) }
	// The first one also brings up what there is once for all.
	if err := s.start(ctx, "idle0"); err != nil {
		return err
	}
	time.Sleep(5 * time.Second)
	var first int
	if s.before, first, err = footprint(s.daemon); err != nil {
		return err
	}
	free, err := available()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := each(ctx, n, func(ctx context.Context, i int) error { return s.start(ctx, name(i)) }); err != nil {
		return err
	}
	s.took = time.Since(began)
	if err := s.watch(ctx); err != nil {
		return err
	}
	var last int
	if s.after, last, err = footprint(s.daemon); err != nil {
		return err
	}
	left, err := available()
	if err != nil {
		return err
	}
	s.processes = last - first
	s.added, s.kernel = (s.after-s.before)/float64(n), (free-left)/float64(n)
	if err := s.remove(ctx, "idle0"); err != nil {
		return err
	}
	return each(ctx, n, func(ctx context.Context, i int) error { return s.remove(ctx, name(i)) })
}

// watch measures the daemon over idleTime, after a moment for it to settle.
func (s *side) watch(ctx context.Context) error {
	if err := pause(ctx, 15*time.Second); err != nil {
		return err
	}
	began, err := cpuOf(s.daemon)
	if err != nil {
		return err
	}
	if err := pause(ctx, idleTime); err != nil {
		return err
	}
	ended, err := cpuOf(s.daemon)
	if err != nil {
		return err
	}
	s.cpu = 100 * (ended - began).Seconds() / idleTime.Seconds()
	s.memory, err = memoryOf(s.daemon)
	return err
}

func (b *bench) polderSide(ctx context.Context) (*side, error) {
	daemon, err := b.daemon(ctx)
	if err != nil {
		return nil, err
	}
	return &side{
		daemon: daemon,
		start: func(ctx context.Context, name string) error {
			op, err := b.client.Launch(ctx, api.LaunchRequest{Name: name, Image: idleImage, MemoryBytes: 64 * api.MiB})
			_, err = b.finish(ctx, op, err)
			return err
		},
		remove: b.delete,
	}, nil
}

func (b *bench) incusSide() (*side, error) {
	daemon, err := b.incus.daemon()
	return &side{
		daemon: daemon,
		start:  func(ctx context.Context, name string) error { return b.incus.create(ctx, idleImage, name, true) },
		remove: func(ctx context.Context, name string) error {
			_, err := b.incus.cli(ctx, "delete", "-f", name)
			return err
		},
	}, err
}

// daemon is the pid, on this machine, of the lab's host's `polder serve`.
func (b *bench) daemon(ctx context.Context) (int, error) {
	first, err := b.hostInit(ctx)
	if err != nil {
		return 0, err
	}
	pids, err := besides(first)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if args := argv(pid); len(args) > 1 && args[1] == "serve" {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("the lab's host has no daemon")
}

// each calls f for 0…n-1, some at once.
func each(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return f(ctx, i)
		})
	}
	return group.Wait()
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
