package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// settle lets what a deletion leaves to the kernel come to its end before the next clock starts.
const settle = 700 * time.Millisecond

// launchResult is what one launch and first exec took, in milliseconds.
type launchResult struct{ launch, total float64 }

// measureLaunch times a container from the command to the first output of a command in it, as a user types it: two runs of
// the command line, with the image there and the network included. The same tree on both sides.
func measureLaunch(ctx context.Context, b *bench) error {
	floor, err := b.newFloor(ctx)
	if err != nil {
		return err
	}
	var launch, total, theirLaunch, theirTotal, bare sample
	parts := map[string]*sample{}
	for i := -1; i < b.launches; i++ { // the first round only warms up
		name := "launch" + strconv.Itoa(i+1)
		ours, times, err := b.launchPolder(ctx, name)
		if err != nil {
			return err
		}
		theirs, err := b.incus.launch(ctx, name)
		if err != nil {
			return err
		}
		alone, err := floor.run(ctx)
		if err != nil {
			return err
		}
		if i < 0 {
			continue
		}
		launch.add(ours.launch)
		total.add(ours.total)
		theirLaunch.add(theirs.launch)
		theirTotal.add(theirs.total)
		bare.add(alone)
		for step, t := range times {
			if parts[step] == nil {
				parts[step] = &sample{}
			}
			parts[step].add(t)
		}
	}
	if err := b.delete(ctx, floor.name); err != nil {
		return err
	}
	s := b.report.section("A container: launch, then the first output of exec")
	s.add(row{what: "launch and exec", unit: "ms", ours: total, peer: "Incus", theirs: theirTotal, aim: atMost("≤ 1/5", total, theirTotal, 5)})
	s.add(row{what: "– of it launch", unit: "ms", ours: launch, peer: "Incus", theirs: theirLaunch})
	s.add(row{what: "launch and exec", unit: "ms", ours: total, peer: "crun run, no network: the floor", theirs: bare})
	for _, step := range []string{"reserve", "volume", "start"} {
		if p := parts[step]; p != nil {
			s.add(row{what: "– in the daemon, step " + step, unit: "ms", ours: *p})
		}
	}
	s.note("%s, whose systemd boots while the first exec runs; both sides run their own command line twice.", systemImage)
	return nil
}

func (b *bench) launchPolder(ctx context.Context, name string) (r launchResult, times map[string]float64, err error) {
	began := time.Now()
	if _, err := b.cli(ctx, "launch", systemImage, name); err != nil {
		return r, nil, err
	}
	r.launch = milliseconds(time.Since(began))
	out, err := b.cli(ctx, "exec", name, "--", "echo", "ok")
	r.total = milliseconds(time.Since(began))
	if err := says("ok", out, err); err != nil {
		return r, nil, err
	}
	ops, err := b.client.Operations(ctx)
	if err != nil {
		return r, nil, err
	}
	for _, op := range ops {
		if op.Kind == "launch" && op.Target == "ve/"+name {
			times = steps(op)
			break
		}
	}
	err = b.delete(ctx, name)
	time.Sleep(settle)
	return r, times, err
}

func (i *incus) launch(ctx context.Context, name string) (r launchResult, err error) {
	began := time.Now()
	if _, err := i.cli(ctx, "launch", systemImage, name); err != nil {
		return r, err
	}
	r.launch = milliseconds(time.Since(began))
	out, err := i.cli(ctx, "exec", name, "--", "echo", "ok")
	r.total = milliseconds(time.Since(began))
	if err := says("ok", out, err); err != nil {
		return r, err
	}
	_, err = i.cli(ctx, "delete", "-f", name)
	time.Sleep(settle)
	return r, err
}

// floor is crun by itself, on a tree like the others', without a network.
type floor struct {
	b    *bench
	name string // of the VE whose volume is the tree
	tree string // in the lab's host
}

func (b *bench) newFloor(ctx context.Context) (*floor, error) {
	f := &floor{b: b, name: "floor"}
	if _, err := b.cli(ctx, "launch", systemImage, f.name, "--no-start"); err != nil {
		return nil, err
	}
	ve, err := b.client.VE(ctx, f.name)
	if err != nil {
		return nil, err
	}
	f.tree = filepath.Join("/var/lib/polder/pools", ve.Pool, "volumes", ve.ID, "root")
	return f, b.shareProgram()
}

// run returns the milliseconds from crun's start to the end of `echo ok`.
func (f *floor) run(ctx context.Context) (float64, error) {
	out, err := f.b.inHost(ctx, sharedProgram, insideCrun, f.tree)
	if err != nil {
		return 0, err
	}
	ms, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", insideCrun, err)
	}
	return ms, nil
}
