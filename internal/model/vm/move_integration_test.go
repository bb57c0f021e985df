//go:build integration

package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/model"
)

// Both ends of these moves are on one host: two models, two directories, two sets of names.

// link joins the two ends of a move, over loopback.
type link struct {
	secret []byte

	mu      sync.Mutex // guards what follows
	waiting map[string]net.Conn
	all     []net.Conn
	bytes   api.Bytes
}

type end struct {
	*link
	other *end
}

func joined(t *testing.T) (source, target *end) {
	l := &link{secret: make([]byte, 32), waiting: map[string]net.Conn{}}
	_, _ = rand.Read(l.secret)
	t.Cleanup(l.cut)
	return &end{link: l}, &end{link: l}
}

// cut ends all streams, as the loss of the other host does.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.all {
		_ = c.Close()
	}
}

func (e *end) Peer() netip.Addr  { return netip.MustParseAddr("127.0.0.1") }
func (e *end) Local() netip.Addr { return netip.MustParseAddr("127.0.0.1") }
func (e *end) Secret() []byte    { return e.secret }
func (e *end) Count(n api.Bytes) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bytes += n
}

func (e *end) Stream(ctx context.Context, name string) (model.Stream, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, ok := e.waiting[name]; ok {
		delete(e.waiting, name)
		return stream{c.(*net.TCPConn)}, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	b, err := l.Accept()
	if err != nil {
		return nil, err
	}
	e.waiting[name] = b
	e.all = append(e.all, a, b)
	return stream{a.(*net.TCPConn)}, nil
}

type stream struct{ *net.TCPConn }

// at gives the VE as another host has it: with an empty disk of the same size.
func at(t *testing.T, ve model.Spec) model.Spec {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	other := ve
	other.Dir, other.Root.Disk = filepath.Join(dir, "ve"), filepath.Join(dir, "disk.raw")
	other.IDBase = ve.IDBase + ve.IDCount
	other.NICs = append([]model.NIC(nil), ve.NICs...)
	id := uuid.NewString()
	other.Cgroup = "/polder-test/" + id
	for i := range other.NICs {
		other.NICs[i].HostName = fmt.Sprintf("vn%s%d", id[:8], i)
	}
	info, err := os.Stat(ve.Root.Disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(dir, 0o711), os.Mkdir(other.Dir, 0o711), os.WriteFile(other.Root.Disk, nil, 0o600), os.Truncate(other.Root.Disk, info.Size()),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return other
}

// copied sends a VE and receives it, both on this host.
func copied(t *testing.T, here, there model.Spec, source, target *end, o model.SendOptions) (model.Sent, error, error) {
	t.Helper()
	received := make(chan error, 1)
	t.Cleanup(func() {
		if err := errors.Join(New(Config{}).Stop(context.Background(), there, 0), New(Config{}).Remove(context.Background(), there)); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		received <- New(Config{}).Receive(ctx, there, target, volumeOf(there))
	}()
	sent, err := New(Config{}).Send(ctx, here, source, o)
	return sent, err, <-received
}

func TestMoveThereAndBack(t *testing.T) {
	here := bootSpec(t)
	started(t, New(Config{}), here)
	logged(t, here, "polder", 1)
	there := at(t, here)
	for turn := range 10 {
		mode := api.Live
		if turn%3 == 2 {
			mode = api.Warm
		}
		source, target := joined(t)
		began := time.Now()
		sent, err, received := copied(t, here, there, source, target, model.SendOptions{Mode: mode})
		if err != nil || received != nil {
			t.Fatalf("turn %d: send: %v, receive: %v", turn, err, received)
		}
		if p, paused, ok, err := New(Config{}).Adopt(t.Context(), there); err != nil || !ok || paused || p.PID == 0 {
			t.Fatalf("the received VE is adopted as %v, paused %v, %v", ok, paused, err)
		}
		if _, err := New(Config{}).Enter(t.Context(), there); err != nil {
			t.Fatal(err)
		}
		t.Logf("turn %d: %s: %s, %d bytes, still for %s, all %s", turn, mode, sent.Way, sent.Bytes, time.Since(sent.Still), time.Since(began))
		if err := errors.Join(New(Config{}).Stop(t.Context(), here, 0), New(Config{}).Remove(t.Context(), here)); err != nil {
			t.Fatal(err)
		}
		c := sitDown(t, New(Config{}), there)
		c.typed(t, fmt.Sprintf("lap%d.", turn))
		c.expect(t, fmt.Sprintf("lap%d.", turn))
		_ = c.in.Close()
		<-c.done
		here, there = there, here
	}
	log, err := os.ReadFile(here.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "polder"); n != 1 {
		t.Errorf("the system has booted %d times:\n%s", n, log)
	}
	if !strings.Contains(string(log), "lap0.lap1.lap2.") {
		t.Errorf("the log was left behind: %q", log)
	}
}

// File is of no use to a model that hands QEMU addresses.
func (s stream) File() (*os.File, error) { return nil, errors.New("not expected") }

// A VE that was paused is so afterwards, wherever that is.
func TestMovePaused(t *testing.T) {
	here, plug := bootSpec(t), newGated()
	here.Plug = plug
	m := New(Config{})
	started(t, m, here)
	logged(t, here, "polder", 1)
	if err := m.Pause(t.Context(), here); err != nil {
		t.Fatal(err)
	}
	there := at(t, here)
	paused := func(ve model.Spec) {
		t.Helper()
		if _, paused, ok, err := New(Config{}).Adopt(t.Context(), ve); !ok || !paused || err != nil {
			t.Fatalf("adopted: paused %v, ok %v, %v", paused, ok, err)
		}
	}
	for _, mode := range []api.MoveMode{api.Warm, api.Live} { // the second from a source that was kept
		source, target := joined(t)
		if _, err, received := copied(t, here, there, source, target, model.SendOptions{Mode: mode}); err != nil || received != nil {
			t.Fatalf("%s: send: %v, receive: %v", mode, err, received)
		}
		paused(here)
		paused(there)
		if mode == api.Warm {
			discard(t, there)
			if _, err := m.Keep(t.Context(), here); err != nil {
				t.Fatal(err)
			}
			paused(here)
		}
	}
	for range 2 {
		if _, err := m.Enter(t.Context(), there); err != nil {
			t.Fatal(err)
		}
		paused(there)
		untouched(t, there)
	}
	if plug.isShut(there) {
		t.Error("its gate is shut")
	}
	if err := m.Resume(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	if status, err := queryStatus(t.Context(), there); status != "running" {
		t.Errorf("resumed, it is %q, %v", status, err)
	}
	c := sitDown(t, New(Config{}), there)
	c.typed(t, "on")
	c.expect(t, "on")
	_ = c.in.Close()
	<-c.done
}

// Disks of other forms are mirrored by QEMU alone: what lies over a base that both have, or all.
func TestMoveDiskFormats(t *testing.T) {
	for name, test := range map[string]struct{ from, to string }{
		"qcow2 to raw": {"qcow2", "raw"}, "raw to qcow2": {"raw", "qcow2"}, "over a base": {"backed", "backed"},
	} {
		t.Run(name, func(t *testing.T) {
			here := bootSpec(t)
			there := at(t, here)
			base := here.Root.Disk
			here.Root = diskIn(t, filepath.Dir(here.Dir), test.from, base, true)
			there.Root = diskIn(t, filepath.Dir(there.Dir), test.to, base, false)
			started(t, New(Config{}), here)
			logged(t, here, "polder", 1)
			for range 2 { // the second meets what the first has left
				source, target := joined(t)
				if _, err, received := copied(t, here, there, source, target, model.SendOptions{Mode: api.Live}); err != nil || received != nil {
					t.Fatalf("send: %v, receive: %v", err, received)
				}
				discard(t, there)
				if _, err := New(Config{}).Keep(t.Context(), here); err != nil {
					t.Fatal(err)
				}
			}
			if err := New(Config{}).Stop(t.Context(), here, 0); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("qemu-img", "compare", "-f", here.Root.Format, "-F", there.Root.Format, here.Root.Disk, there.Root.Disk).CombinedOutput()
			if err != nil {
				t.Errorf("the disks differ: %v: %s", err, out)
			}
		})
	}
}

// diskIn makes a disk of the form: "raw", "qcow2", or "backed": qcow2 over the base. full: with the base's content.
func diskIn(t *testing.T, dir, form, base string, full bool) model.Root {
	t.Helper()
	path, format := filepath.Join(dir, "d."+form), "qcow2"
	if form == "raw" {
		format = "raw"
	}
	args := []string{"create", "-q", "-f", format, path, "1M"}
	switch {
	case form == "backed":
		args = []string{"create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path}
	case full:
		args = []string{"convert", "-f", "raw", "-O", format, base, path}
	}
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v: %s", args, err, out)
	}
	return model.Root{Disk: path, Format: format}
}
