// Package servertest has an in-memory server.Backend for tests of what stands before it: the routes, the client and the
// command line. It runs no VE; exec runs the command on the test's own machine.
//
// Images decide how a launch goes: "debian/13" works at once, "slow/1" stays in its second step until it is cancelled,
// "stuck/1" too, past the point of no return and until Release, "full/1" fails for want of room. Safe for concurrent use.
package servertest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"polder/api"
)

// epoch is the time of everything that happens in a Backend, so that output can be compared.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Backend implements server.Backend in memory.
type Backend struct {
	mu      sync.Mutex // guards the rest
	ves     map[string]api.VE
	images  map[string]api.Image
	content map[string][]byte // of images, by digest
	hosts   []api.Host        // besides the first two
	ops     []*operation      // oldest first

	snapshots map[string][]api.Snapshot // by VE
	templates []api.Template
	events    []api.Event
	changed   chan struct{} // closed and renewed at every change
	release   chan struct{} // closed by Release
}

type operation struct {
	api.Operation
	cancel context.CancelFunc
}

// New makes a backend with the images of the package comment, and no VE.
func New() *Backend {
	b := &Backend{
		ves: map[string]api.VE{}, snapshots: map[string][]api.Snapshot{},
		images:  map[string]api.Image{},
		content: map[string][]byte{},
		changed: make(chan struct{}),
		release: make(chan struct{}),
	}
	for _, alias := range []string{"debian/13", "slow/1", "stuck/1", "full/1"} {
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(alias)))
		os, release, _ := strings.Cut(alias, "/")
		b.images[digest] = api.Image{
			Digest: digest, Aliases: []string{alias}, OS: os, Release: release, Arch: "amd64", Kernel: "6.12.0",
			Models: []api.Model{api.Container, api.VM}, SizeBytes: 300 * api.MiB, DiskBytes: 2 * api.GiB, CreatedAt: epoch,
			Provenance: api.Provenance{Method: "build", Source: alias},
		}
		b.content[digest] = []byte("content of " + alias)
	}
	return b
}

// Release lets launches of "stuck/1" go on.
func (b *Backend) Release() { close(b.release) }

// Add puts a VE there as it is.
func (b *Backend) Add(ve api.VE) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ves[ve.Name] = ve
}

// change wakes who waits; mu is held.
func (b *Backend) change() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// event records that something happened; mu is held.
func (b *Backend) event(kind, subject, text string) {
	b.events = append(b.events, api.Event{ID: int64(len(b.events) + 1), Time: epoch, Kind: kind, Subject: subject, Text: text})
	b.change()
}

// Launch implements server.Backend.
func (b *Backend) Launch(_ context.Context, req api.LaunchRequest) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.ves[req.Name]; ok {
		return api.Operation{}, api.Errorf(api.Exists, "launch %q: the name is taken", req.Name)
	}
	image, ok := b.find(req.Image)
	if !ok {
		return api.Operation{}, api.Errorf(api.NotFound, "launch %q: image %q not found; see: polder image list", req.Name, req.Image)
	}
	ve := api.VE{
		Name: req.Name, ID: "00000000-0000-4000-8000-000000000001", Model: req.Model, State: api.Running, Host: "h1", Image: req.Image,
		ImageDigest: image.Digest, CPUs: max(req.CPUs, 1), MemoryBytes: max(req.MemoryBytes, 512*api.MiB), DiskBytes: max(req.DiskBytes, 10*api.GiB),
		Labels: req.Labels, CreatedAt: epoch, PID: 4242, Restart: api.RestartOnFailure, Ephemeral: req.Ephemeral, Pool: "default",
		Addresses: []api.Address{
			{Network: "default", MAC: "52:54:00:00:00:01", Address: "10.87.0.5/24"},
			{Network: "default", MAC: "52:54:00:00:00:01", Address: "fd00::5/64"},
		},
		Capability: []api.Capability{{Name: "memory limit", Level: api.Limited, Detail: "no memory controller", Remedy: "boot with cgroup v2"}},
	}
	if req.NoStart {
		ve.State, ve.PID = api.Stopped, 0
	}
	kind, _, _ := strings.Cut(req.Image, "/")
	return b.start("launch", "ve/"+req.Name, kind, func() { b.ves[ve.Name] = ve }), nil
}

// start begins an operation of three steps whose effect is done in the last; mu is held.
func (b *Backend) start(kind, target, behaviour string, effect func()) api.Operation {
	ctx, cancel := context.WithCancel(context.Background())
	op := &operation{cancel: cancel, Operation: api.Operation{
		ID: fmt.Sprintf("%04x", len(b.ops)+1), Kind: kind, Target: target, Host: "h1", State: api.OperationRunning, Cancellable: true,
		Steps: []api.OperationStep{{Name: "claim"}, {Name: "work"}, {Name: "finish"}}, Step: "claim", CreatedAt: epoch, UpdatedAt: epoch,
	}}
	b.ops = append(b.ops, op)
	go b.run(ctx, op, behaviour, effect)
	return b.copyOf(op)
}

func (b *Backend) run(ctx context.Context, op *operation, behaviour string, effect func()) {
	b.step(op, 0)
	b.update(op, func() { op.Step = "work" })
	var err error
	switch behaviour {
	case "slow":
		b.update(op, func() {
			op.Progress = &api.Progress{Done: int64(40 * api.MiB), Total: int64(100 * api.MiB), Unit: "bytes"}
		})
		<-ctx.Done()
	case "stuck":
		b.update(op, func() { op.Cancellable = false })
		<-b.release
	case "full":
		err = api.Errorf(api.Exhausted, "%s %s: pool \"default\" is full: 3MiB free, 2GiB needed", op.Kind, op.Target)
	}
	if ctx.Err() != nil || err != nil {
		b.undo(op, err)
		return
	}
	b.step(op, 1)
	b.update(op, func() { op.Step = "finish" })
	b.step(op, 2)
	b.update(op, func() {
		effect()
		op.State, op.Step, op.Progress, op.Cancellable = api.OperationDone, "", nil, false
		op.UpdatedAt = epoch.Add(43 * time.Millisecond)
		b.event("operation.done", op.Target, op.Kind+" done")
	})
}

// step marks a step as done: it took ten milliseconds of the backend's own time.
func (b *Backend) step(op *operation, i int) {
	b.update(op, func() {
		start, end := epoch.Add(time.Duration(i)*10*time.Millisecond), epoch.Add(time.Duration(i+1)*10*time.Millisecond)
		op.Steps[i].StartedAt, op.Steps[i].FinishedAt = &start, &end
	})
}

func (b *Backend) undo(op *operation, err error) {
	b.update(op, func() { op.State, op.Cancellable = api.OperationUndoing, false })
	b.update(op, func() {
		op.Steps[0].Undone = true
		op.State = api.OperationCancelled
		if err != nil {
			op.State, op.Error = api.OperationFailed, api.ProblemOf(err)
		}
	})
}

func (b *Backend) update(op *operation, change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	b.change()
}

// copyOf is the operation as it is now; mu is held.
func (b *Backend) copyOf(op *operation) api.Operation {
	c := op.Operation
	c.Steps = slices.Clone(c.Steps)
	return c
}

// Operations implements server.Backend.
func (b *Backend) Operations(context.Context) ([]api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ops []api.Operation
	for _, op := range slices.Backward(b.ops) {
		ops = append(ops, b.copyOf(op))
	}
	return ops, nil
}

// Operation implements server.Backend.
func (b *Backend) Operation(_ context.Context, id string) (api.Operation, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	op, err := b.operation(id)
	if err != nil {
		return api.Operation{}, err
	}
	return b.copyOf(op), nil
}

func (b *Backend) operation(id string) (*operation, error) {
	for _, op := range b.ops {
		if op.ID == id {
			return op, nil
		}
	}
	return nil, api.Errorf(api.NotFound, "operation %q not found; see: polder op list", id)
}

// WaitOperation implements server.Backend.
func (b *Backend) WaitOperation(ctx context.Context, id string, each func(api.Operation)) (api.Operation, error) {
	for {
		b.mu.Lock()
		op, err := b.operation(id)
		if err != nil {
			b.mu.Unlock()
			return api.Operation{}, err
		}
		now, changed := b.copyOf(op), b.changed
		b.mu.Unlock()
		each(now)
		if now.State.Final() {
			return now, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}

// CancelOperation implements server.Backend.
func (b *Backend) CancelOperation(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	op, err := b.operation(id)
	if err != nil {
		return err
	}
	if !op.Cancellable {
		return api.Errorf(api.Precondition, "operation %s is past its point of no return", id)
	}
	op.cancel()
	return nil
}

// Events implements server.Backend.
func (b *Backend) Events(ctx context.Context, after int64, each func(api.Event) error) error {
	b.mu.Lock()
	next := int(after)
	if after == 0 {
		next = len(b.events)
	}
	b.mu.Unlock()
	for {
		b.mu.Lock()
		news, changed := slices.Clone(b.events[min(next, len(b.events)):]), b.changed
		b.mu.Unlock()
		for _, e := range news {
			if err := each(e); err != nil {
				return err
			}
		}
		next += len(news)
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
