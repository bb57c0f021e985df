//go:build integration

package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// gated remembers its gates, and calls at when one is shut.
type gated struct {
	taps
	shut *sync.Map
	at   *func()
}

func newGated() gated { return gated{shut: &sync.Map{}, at: new(func())} }

func (g gated) Tap(ctx context.Context, nic model.NIC, uid uint32) error {
	g.shut.Store(nic.HostName, nic.Shut)
	return g.taps.Tap(ctx, nic, uid)
}

func (g gated) Gate(_ context.Context, nic model.NIC, open bool) error {
	g.shut.Store(nic.HostName, !open)
	if at := *g.at; !open && at != nil {
		at()
	}
	return nil
}

func (g gated) isShut(ve model.Spec) bool {
	shut, _ := g.shut.Load(ve.NICs[0].HostName)
	return shut == true
}

// watched is an end of a move that calls at, once, when what is due is said or asked for.
type watched struct {
	*end
	on string
	at func()
}

func (w watched) Stream(ctx context.Context, name string) (model.Stream, error) {
	if name == w.on {
		w.at()
	}
	s, err := w.end.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	return watchedStream{s.(stream), w}, nil
}

type watchedStream struct {
	stream
	w watched
}

func (s watchedStream) Write(p []byte) (int, error) {
	if strings.Contains(string(p[:min(len(p), 40)]), `"`+s.w.on+`"`) {
		s.w.at()
	}
	return s.stream.Write(p)
}

// A move that is cut off at any point, in any way, leaves the VE running at the source as if nothing had happened, and nothing
// at the target.
func TestMoveCutOff(t *testing.T) {
	for _, phase := range []string{"hello", "ready", diskStream, "memory", "gate", "still", "go", "whole"} {
		for _, fault := range []string{"daemon", "link", "target"} {
			if phase == "whole" && fault != "link" {
				continue // it has arrived, and may be known to have
			}
			t.Run(phase+" "+fault, func(t *testing.T) { testCutOff(t, phase, fault, model.SendOptions{Mode: api.Live}) })
		}
	}
}

// So does one whose memory would have followed.
func TestPostCopyCutOff(t *testing.T) {
	for _, phase := range []string{"memory", "gate", "go", "whole"} {
		for _, fault := range []string{"daemon", "link", "target"} {
			if phase == "whole" && fault != "link" {
				continue
			}
			t.Run(phase+" "+fault, func(t *testing.T) { testCutOff(t, phase, fault, followed) })
		}
	}
}

func testCutOff(t *testing.T, phase, fault string, options model.SendOptions) {
	here, plug := bootSpec(t), newGated()
	here.Plug = plug
	p := started(t, New(Config{}), here)
	logged(t, here, "polder", 1)
	there := at(t, here)
	source, target := joined(t)
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	var once sync.Once
	strike := func() {
		once.Do(func() {
			switch fault {
			case "daemon":
				kill()
			case "link":
				source.cut()
			case "target":
				pid, err := holder(there)
				if err != nil || pid == 0 {
					source.cut() // it has none yet
					return
				}
				if process, err := os.FindProcess(pid); err == nil {
					_ = process.Kill()
				}
			}
		})
	}
	options.Progress = func(int64, int64, string) {
		if phase == "memory" {
			strike()
		}
	}
	if phase == "gate" {
		*plug.at = strike
	}
	received := make(chan error, 1)
	go func() {
		received <- New(Config{}).Receive(t.Context(), there, watched{target, phase, strike}, volumeOf(there))
	}()
	began := time.Now()
	_, err := New(Config{}).Send(ctx, here, watched{source, phase, strike}, options)
	failed := <-received
	if err == nil && failed == nil {
		t.Fatal("the move has succeeded")
	}
	t.Logf("after %s: send: %v; receive: %v", time.Since(began), err, failed)
	*plug.at = nil
	discard(t, there)
	keeps(t, here, plug, p)
	*plug.at = nil
	// And the next one succeeds.
	source, target = joined(t)
	if _, err, received := copied(t, here, there, source, target, model.SendOptions{Mode: api.Live}); err != nil || received != nil {
		t.Fatalf("the move after that: send: %v, receive: %v", err, received)
	}
	if !plug.isShut(here) || !plug.isShut(there) {
		t.Error("a VE that stands still has an open gate")
	}
}

func volumeOf(ve model.Spec) model.ReceiveOptions {
	return model.ReceiveOptions{Volume: func(context.Context) (model.Root, error) { return ve.Root, nil }}
}

// discard is what a target does with its half.
func discard(t *testing.T, there model.Spec) {
	t.Helper()
	if err := errors.Join(New(Config{}).Stop(t.Context(), there, 0), New(Config{}).Remove(t.Context(), there)); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, there); len(left) > 0 {
		t.Errorf("left at the target: %q", left)
	}
}

// keeps lets the VE go on at the source, and looks whether it does, as before.
func keeps(t *testing.T, here model.Spec, plug gated, p model.Process) {
	t.Helper()
	began := time.Now()
	for range 2 {
		kept, err := New(Config{}).Keep(t.Context(), here)
		if err != nil {
			t.Fatal(err)
		}
		if kept.PID != p.PID {
			t.Fatalf("kept pid %d, want %d", kept.PID, p.PID)
		}
	}
	t.Logf("kept in %s", time.Since(began))
	if plug.isShut(here) {
		t.Error("its gate is shut")
	}
	c := sitDown(t, New(Config{}), here)
	c.typed(t, "on")
	c.expect(t, "on")
	_ = c.in.Close()
	<-c.done
	untouched(t, here)
}

// untouched looks for what a move may leave in QEMU.
func untouched(t *testing.T, ve model.Spec) {
	t.Helper()
	q, err := New(Config{}).openMonitor(t.Context(), ve)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	works, err := q.works(t.Context())
	if err != nil || len(works) > 0 {
		t.Errorf("jobs %v, %v", works, err)
	}
	var nodes []struct {
		Name    string     `json:"node-name"`
		Bitmaps []struct{} `json:"dirty-bitmaps"`
	}
	if err := q.ask(t.Context(), "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		if node.Name != diskFormat && node.Name != diskFile || len(node.Bitmaps) > 0 {
			t.Errorf("block device %s with %d bitmaps", node.Name, len(node.Bitmaps))
		}
	}
	var capabilities []struct {
		Name string `json:"capability"`
		On   bool   `json:"state"`
	}
	if err := q.ask(t.Context(), "query-migrate-capabilities", nil, &capabilities); err != nil {
		t.Fatal(err)
	}
	for _, c := range capabilities {
		if c.On {
			t.Errorf("capability %s is on", c.Name)
		}
	}
	var objects []struct {
		Name string `json:"name"`
	}
	if err := q.ask(t.Context(), "qom-list", map[string]any{"path": "/objects"}, &objects); err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if o.Name == moveKey {
			t.Error("the key is still there")
		}
	}
	for _, path := range []string{movingFile(ve), keyDir(ve)} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}

// A target whose pool fills up says so, at both ends.
func TestMoveToFullPool(t *testing.T) {
	here, plug := bootSpec(t), newGated()
	here.Plug = plug
	content := make([]byte, 512<<10)
	_, _ = rand.Read(content)
	f, err := os.OpenFile(here.Root.Disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(content, 128<<10); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	p := started(t, New(Config{}), here)
	logged(t, here, "polder", 1)
	there := at(t, here)
	small := filepath.Join(filepath.Dir(there.Dir), "small")
	if err := errors.Join(os.Mkdir(small, 0o711), unix.Mount("small", small, "tmpfs", 0, "size=256k,mode=711")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	there.Root.Disk = filepath.Join(small, "disk.raw")
	if err := errors.Join(os.WriteFile(there.Root.Disk, nil, 0o600), os.Truncate(there.Root.Disk, 1<<20)); err != nil {
		t.Fatal(err)
	}
	source, target := joined(t)
	_, sent, received := copied(t, here, there, source, target, model.SendOptions{Mode: api.Live})
	for _, err := range []error{sent, received} {
		if err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("got %v", err)
		}
	}
	discard(t, there)
	keeps(t, here, plug, p)
}
