//go:build integration

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/qmp"
)

var followed = model.SendOptions{Mode: api.Live, PostCopy: true}

// restlessSpec is a VE that prints "polder" and then writes to 512 KiB of its memory, again and again.
func restlessSpec(t *testing.T) model.Spec {
	t.Helper()
	ve := bootSpec(t)
	code := []byte{0x31, 0xC0, 0x8E, 0xD0, 0xBC, 0x00, 0x7C, 0xFC, 0xBA, 0xF8, 0x03} // ax, ss = 0; sp = 0x7c00; cld; dx = 0x3f8
	for _, c := range []byte("polder") {
		code = append(code, 0xB0, c, 0xEE) // al = c; out dx, al
	}
	code = append(code,
		0x43,             // again: inc bx
		0xBE, 0x00, 0x10, // si = 0x1000
		0x8E, 0xC6, 0x31, 0xFF, 0x89, 0xD8, // next: es = si; di = 0; ax = bx
		0xB9, 0x00, 0x80, 0xF3, 0xAB, // cx = 0x8000; rep stosw
		0x81, 0xC6, 0x00, 0x10, 0x81, 0xFE, 0x00, 0x90, // si += 0x1000; compare with 0x9000
		0x72, 0xEB, 0xEB, 0xE5) // below: next; again
	sector := make([]byte, 512)
	copy(sector, code)
	sector[510], sector[511] = 0x55, 0xAA
	f, err := os.OpenFile(ve.Root.Disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(sector, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return ve
}

// told gives an order by the VE's first monitor, which no move uses.
func told(t *testing.T, ve model.Spec, command string, arguments map[string]any) {
	t.Helper()
	c, err := qmp.Dial(t.Context(), qmpSocket(ve))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var args any
	if arguments != nil {
		args = arguments
	}
	if err := c.Execute(t.Context(), command, args, nil); err != nil {
		t.Fatal(err)
	}
}

// goesOn lets a VE go on at the target while its memory is at the source.
func goesOn(t *testing.T, here, there model.Spec) {
	t.Helper()
	served := make(chan error, 1)
	go func() { _, err := New(Config{}).Serve(t.Context(), here, ""); served <- err }()
	_, err := New(Config{}).Enter(t.Context(), there)
	if err := errors.Join(err, <-served); err != nil {
		t.Fatal(err)
	}
	if status, err := queryStatus(t.Context(), there); status != "running" {
		t.Fatalf("it is %q, %v", status, err)
	}
}

func never(context.Context, string) error { return errors.New("the connection broke") }

func TestPostCopyThereAndBack(t *testing.T) {
	here, plug := bootSpec(t), newGated()
	here.Plug = plug
	p := started(t, New(Config{}), here)
	logged(t, here, "polder", 1)
	there := at(t, here)
	for turn := range 4 {
		source, target := joined(t)
		sent, err, received := copied(t, here, there, source, target, followed)
		if err != nil || received != nil {
			t.Fatalf("turn %d: send: %v, receive: %v", turn, err, received)
		}
		if !plug.isShut(here) || !plug.isShut(there) {
			t.Error("a VE that stands still has an open gate")
		}
		if turn == 0 { // it was decided otherwise
			discard(t, there)
			keeps(t, here, plug, p)
			continue
		}
		goesOn(t, here, there)
		for range 2 {
			if err := New(Config{}).Gather(t.Context(), there, never); err != nil {
				t.Fatal(err)
			}
			if _, err := New(Config{}).Enter(t.Context(), there); err != nil {
				t.Fatal(err)
			}
			untouched(t, there)
		}
		n, err := New(Config{}).Serve(t.Context(), here, "")
		if err != nil || n == 0 {
			t.Errorf("the source has sent %d bytes, %v", n, err)
		}
		t.Logf("turn %d: %s, %d bytes and %d of memory, still for %s", turn, sent.Way, sent.Bytes, n, time.Since(sent.Still))
		if plug.isShut(there) {
			t.Error("its gate is shut")
		}
		discard(t, here)
		c := sitDown(t, New(Config{}), there)
		c.typed(t, fmt.Sprintf("lap%d.", turn))
		c.expect(t, fmt.Sprintf("lap%d.", turn))
		_ = c.in.Close()
		<-c.done
		here, there = there, here
	}
	if list, err := readAccess(); err != nil || slices.ContainsFunc(list, func(a access) bool { return a.Tag == aclUser }) {
		t.Errorf("%s is still open to users: %v, %v", faultDevice, list, err)
	}
}

// under brings a VE to where it could go on, and all that it writes to is still at the source, from where it comes slowly. It does not go
// on, since it would ask for all at once.
func under(t *testing.T) (here, there model.Spec) {
	t.Helper()
	here = restlessSpec(t)
	started(t, New(Config{}), here)
	logged(t, here, "polder", 1)
	there = at(t, here)
	source, target := joined(t)
	slowly := followed
	slowly.Bandwidth = 4 * api.MiB // so that it writes much while all is sent for the first time
	if _, err, received := copied(t, here, there, source, target, slowly); err != nil || received != nil {
		t.Fatalf("send: %v, receive: %v", err, received)
	}
	told(t, here, "migrate-set-parameters", map[string]any{"max-postcopy-bandwidth": 16 << 10})
	if _, err := New(Config{}).Serve(t.Context(), here, ""); err != nil {
		t.Fatal(err)
	}
	q, err := New(Config{}).openMonitor(t.Context(), there)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if err := q.underWay(t.Context()); err != nil {
		t.Fatal(err)
	}
	return here, there
}

// A connection that breaks while the memory follows is made anew, as often as it takes.
func TestPostCopyConnectionBreaks(t *testing.T) {
	here, there := under(t)
	told(t, there, "migrate-pause", nil)
	calls := 0
	err := New(Config{}).Gather(t.Context(), there, func(ctx context.Context, to string) error {
		if calls++; calls == 1 {
			return errors.New("the source does not answer")
		}
		if calls == 3 {
			told(t, here, "migrate-set-parameters", map[string]any{"max-postcopy-bandwidth": 0})
		}
		_, err := New(Config{}).Serve(ctx, here, to)
		if err == nil && calls == 2 {
			told(t, there, "migrate-pause", nil)
		}
		return err
	})
	if err != nil || calls < 3 {
		t.Fatalf("after %d calls: %v", calls, err)
	}
	untouched(t, there)
	told(t, there, "cont", nil)
	discard(t, here)
	if status, err := queryStatus(t.Context(), there); status != "running" {
		t.Errorf("it is %q, %v", status, err)
	}
}

// A VE whose source dies before all has followed is lost; it can still be stopped.
func TestPostCopySourceDies(t *testing.T) {
	here, there := under(t)
	discard(t, here)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	err := New(Config{}).Gather(ctx, there, func(context.Context, string) error {
		cancel(gone)
		return gone
	})
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	discard(t, there)
}
