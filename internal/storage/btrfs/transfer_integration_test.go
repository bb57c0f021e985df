//go:build integration

package btrfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"polder/api"
	"polder/internal/storage"
)

// pools of two file systems, of which both have the base "b".
func pools(t *testing.T, fill func(context.Context, string) error) (from, to storage.Pool) {
	t.Helper()
	from, to = open(t, fileSystem(t, "4G")), open(t, fileSystem(t, "4G"))
	must(t, from.AddBase(t.Context(), "b", storage.Tree, fill))
	start := time.Now()
	sent := carry(t, func(w io.Writer) error { return from.SendBase(t.Context(), "b", storage.Tree, w) },
		func(r io.Reader) error { return to.ReceiveBase(t.Context(), "b", storage.Tree, r) })
	t.Logf("base: %d bytes in %v", sent, time.Since(start))
	return from, to
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// carry joins the two ends by a pipe and says how many bytes went through it.
func carry(t *testing.T, send func(io.Writer) error, receive func(io.Reader) error) int64 {
	t.Helper()
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := send(w)
		w.CloseWithError(err)
		sent <- err
	}()
	counted := &counter{r: r}
	err := receive(counted)
	r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	must(t, errors.Join(<-sent, err))
	return counted.n
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func round(t *testing.T, from, to storage.Pool, tr storage.Transfer, n int) int64 {
	t.Helper()
	return carry(t, func(w io.Writer) error { return from.SendRound(t.Context(), tr, n, w) },
		func(r io.Reader) error { return to.ReceiveRound(t.Context(), tr, n, r) })
}

var transfer = storage.Transfer{ID: "v", Kind: storage.Tree, Base: "b", Size: 64 * api.MiB}

// Subvolumes made inside a VE come along, into their places and read-only where they were; those that went between the rounds do not.
func TestNestedSubvolumesAreSent(t *testing.T) {
	from, to := pools(t, fill("base"))
	v, err := from.Clone(t.Context(), "b", storage.Tree, "v", transfer.Size)
	must(t, err)
	write := func(path, text string) { must(t, os.WriteFile(filepath.Join(v.Path, path), []byte(text), 0o644)) }
	must(t, os.MkdirAll(filepath.Join(v.Path, "var/lib"), 0o755))
	for _, name := range []string{"var/lib/machines", "var/lib/machines/deep", "gone", "sealed"} {
		run(t, "btrfs", "subvolume", "create", filepath.Join(v.Path, name))
		write(name+"/file", name)
	}
	run(t, "btrfs", "subvolume", "create", v.Path+"/sealed/within")
	run(t, "btrfs", "property", "set", v.Path+"/sealed", "ro", "true")
	round(t, from, to, transfer, 0)
	run(t, "btrfs", "subvolume", "delete", v.Path+"/gone")
	run(t, "btrfs", "subvolume", "create", v.Path+"/late")
	write("late/file", "late")
	must(t, os.Rename(filepath.Join(v.Path, "var/lib/machines"), filepath.Join(v.Path, "moved")))
	write("moved/deep/file", "changed")
	round(t, from, to, transfer, 1)
	round(t, from, to, transfer, 1) // again
	write("moved/file", "changed too")
	before, err := os.Stat(filepath.Join(v.Path, "var/lib"))
	must(t, err)
	last := transfer
	last.Last = true
	round(t, from, to, last, 2)
	got, err := to.FinishReceive(t.Context(), transfer)
	must(t, err)
	must(t, from.EndTransfer(t.Context(), "v"))
	for path, want := range map[string]string{
		"file": "base", "moved/file": "changed too", "moved/deep/file": "changed", "late/file": "late", "sealed/file": "sealed",
	} {
		if text, err := os.ReadFile(filepath.Join(got.Path, path)); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	for _, name := range []string{"moved", "moved/deep", "late", "sealed", "sealed/within"} {
		if ok, err := isSubvolumeRoot(filepath.Join(got.Path, name)); err != nil || !ok {
			t.Errorf("%s is no subvolume: %v", name, err)
		}
	}
	if err := os.WriteFile(got.Path+"/sealed/x", nil, 0o600); err == nil {
		t.Error("a read-only subvolume is writable now")
	}
	if after, err := os.Stat(filepath.Join(got.Path, "var/lib")); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("a directory's time changed: %v, %v, want %v", after, err, before)
	}
	wantClean(t, from)
	wantClean(t, to)
	for _, p := range []storage.Pool{from, to} {
		must(t, p.Delete(t.Context(), "v"))
		if groups := run(t, "btrfs", "qgroup", "show", p.Path()); strings.Contains(groups, "\n1/") {
			t.Errorf("quota groups are left: %s", groups)
		}
	}
}

// wantClean looks for what is kept beside volumes.
func wantClean(t *testing.T, p storage.Pool) {
	t.Helper()
	for _, pattern := range []string{"*/*/.*", "trash/*"} {
		if left, _ := filepath.Glob(filepath.Join(p.Path(), pattern)); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	}
}

// The limit holds at the receiver, for what came too, also when a round had to come again; and again at the sender afterwards.
func TestLimitComesAlong(t *testing.T) {
	from, to := pools(t, fill("base"))
	v, err := from.Clone(t.Context(), "b", storage.Tree, "v", transfer.Size)
	must(t, err)
	dd := func(v storage.Volume, name string, mib string) error {
		return exec.Command("dd", "if=/dev/urandom", "of="+filepath.Join(v.Path, name), "bs=1M", "count="+mib, "conv=fsync,notrunc").Run()
	}
	must(t, dd(v, "one", "40"))
	round(t, from, to, transfer, 0)
	must(t, dd(v, "one", "40")) // which the snapshot keeps twice
	var stream bytes.Buffer
	must(t, from.SendRound(t.Context(), transfer, 1, &stream))
	if err := to.ReceiveRound(t.Context(), transfer, 1, bytes.NewReader(stream.Bytes()[:stream.Len()/2])); err == nil {
		t.Error("half a round was taken")
	}
	must(t, dd(v, "two", "2"))
	round(t, from, to, transfer, 1)
	got, err := to.FinishReceive(t.Context(), transfer)
	must(t, err)
	must(t, from.EndTransfer(t.Context(), "v"))
	run(t, "sync")
	run(t, "btrfs", "subvolume", "sync", from.Path())
	run(t, "btrfs", "subvolume", "sync", to.Path())
	for _, c := range []struct {
		p storage.Pool
		v storage.Volume
	}{{from, v}, {to, got}} {
		used, err := c.p.Usage(t.Context(), "v")
		if err != nil || used < 41*api.MiB || used > 50*api.MiB {
			t.Errorf("usage %s, %v", used, err)
		}
		if err := dd(c.v, "three", "40"); err == nil {
			t.Error("the limit is not kept")
		}
	}
}

// A pool that gets full while a volume comes keeps nothing of it.
func TestFullWhileReceiving(t *testing.T) {
	from, to := open(t, fileSystem(t, "1G")), open(t, fileSystem(t, "200M"))
	for _, p := range []storage.Pool{from, to} {
		must(t, p.AddBase(t.Context(), "b", storage.Tree, fill("base")))
	}
	v, err := from.Clone(t.Context(), "b", storage.Tree, "v", 0)
	must(t, err)
	run(t, "dd", "if=/dev/urandom", "of="+v.Path+"/big", "bs=1M", "count=300")
	tr := storage.Transfer{ID: "v", Kind: storage.Tree} // their bases are not the same
	var stream bytes.Buffer
	must(t, from.SendRound(t.Context(), tr, 0, &stream))
	err = to.ReceiveRound(t.Context(), tr, 0, &stream)
	if api.KindOf(err) != api.Exhausted || !strings.Contains(err.Error(), "is full: delete") {
		t.Errorf("got %v", err)
	}
	must(t, to.EndTransfer(t.Context(), "v"))
	wantClean(t, to)
	run(t, "btrfs", "subvolume", "sync", to.Path())
	must(t, os.Remove(v.Path+"/big"))
	round(t, from, to, tr, 0)
	_, err = to.FinishReceive(t.Context(), tr)
	must(t, err)
}

// A stream writes nowhere but into its subvolume, whatever it says.
func TestHostileStream(t *testing.T) {
	p := open(t, fileSystem(t, "256M"))
	outside := filepath.Join(p.Path(), "outside")
	must(t, os.WriteFile(outside, []byte("safe"), 0o600))
	must(t, os.Mkdir(outside+".d", 0o700))
	link := streamed(cmdSymlink, attr(attrPath, "link"), attr(attrPathLink, "../../../outside.d"))
	file := streamed(cmdSymlink, attr(attrPath, "file"), attr(attrPathLink, "../../../outside"))
	fifo := streamed(cmdMakeFIFO, attr(attrPath, "fifo"))
	for name, evil := range map[string][]byte{
		"dots":     streamed(cmdMakeFile, attr(attrPath, "../../../outside.d/x")),
		"absolute": streamed(cmdMakeFile, attr(attrPath, outside+".d/x")),
		"link":     slices.Concat(link, streamed(cmdMakeFile, attr(attrPath, "link/x"))),
		"write":    slices.Concat(file, streamed(cmdWrite, attr(attrPath, "file"), attr(attrOffset, number(0)), attr(attrData, "evil"))),
		"chmod":    slices.Concat(file, streamed(cmdChmod, attr(attrPath, "file"), attr(attrMode, number(0o777)))),
		"truncate": slices.Concat(file, streamed(cmdTruncate, attr(attrPath, "file"), attr(attrSize, number(0)))),
		"hardlink": streamed(cmdLink, attr(attrPath, "x"), attr(attrPathLink, "../../../outside")),
		"rename":   streamed(cmdRename, attr(attrPath, "../../../outside"), attr(attrPathTo, "x")),
		"unlink":   streamed(cmdUnlink, attr(attrPath, "../../../outside")),
		"fifo":     slices.Concat(fifo, streamed(cmdWrite, attr(attrPath, "fifo"), attr(attrOffset, number(0)), attr(attrData, "x"))),
		"nothing":  streamed(cmdMakeFile),
		"clone": slices.Concat(streamed(cmdMakeFile, attr(attrPath, "x")), streamed(cmdClone, attr(attrPath, "x"), attr(attrOffset, number(0)),
			attr(attrCloneUUID, "0123456789abcdef"), attr(attrClonePath, "../../../outside"), attr(attrCloneOffset, number(0)), attr(attrCloneLength, number(4)))),
	} {
		t.Run(name, func(t *testing.T) {
			stream := slices.Concat([]byte(`{"v":1,"id":5,"full":true}`+"\n"), streamHeader(),
				streamed(cmdSubvolume, attr(attrPath, "x"), attr(attrUUID, "0123456789abcdef")), evil, streamed(cmdEnd), []byte(`{"v":1,"end":true}`+"\n"))
			tr := storage.Transfer{ID: "v", Kind: storage.Tree}
			if err := p.ReceiveRound(t.Context(), tr, 0, bytes.NewReader(stream)); err == nil {
				t.Error("it was taken")
			}
			must(t, p.EndTransfer(t.Context(), "v"))
			info, err := os.Stat(outside)
			must(t, err)
			if text, err := os.ReadFile(outside); err != nil || string(text) != "safe" || info.Mode().Perm() != 0o600 {
				t.Errorf("outside is %q, %v, %v", text, info.Mode(), err)
			}
			if list, err := os.ReadDir(outside + ".d"); err != nil || len(list) > 0 {
				t.Errorf("outside has %v, %v", list, err)
			}
		})
	}
	wantClean(t, p)
}

// What a move sends is what differs from the image, and its last round takes no longer than a blink.
func TestSendsWhatDiffers(t *testing.T) {
	from, to := pools(t, func(_ context.Context, path string) error {
		random := make([]byte, 1<<20)
		for i := range 600 {
			_, _ = rand.Read(random)
			dir := filepath.Join(path, string(rune('a'+i%26)))
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, string(rune('a'+i/26))), random, 0o644)); err != nil {
				return err
			}
		}
		return nil
	})
	v, err := from.Clone(t.Context(), "b", storage.Tree, "v", api.GiB)
	must(t, err)
	own := make([]byte, 5<<20)
	_, _ = rand.Read(own)
	must(t, os.WriteFile(v.Path+"/own", own, 0o644))
	run(t, "cp", "--reflink=always", v.Path+"/a/a", v.Path+"/copy")
	tr := storage.Transfer{ID: "v", Kind: storage.Tree, Base: "b", Size: api.GiB}
	start := time.Now()
	sent := round(t, from, to, tr, 0)
	t.Logf("round 0: %d bytes in %v", sent, time.Since(start))
	if sent < 5<<20 || sent > 11*(5<<20)/10 {
		t.Errorf("%d bytes were sent for 5 MiB", sent)
	}
	must(t, os.WriteFile(v.Path+"/own2", own[:100<<10], 0o644))
	start = time.Now()
	t.Logf("round 1: %d bytes in %v", round(t, from, to, tr, 1), time.Since(start))
	must(t, os.WriteFile(v.Path+"/own3", own[:20<<10], 0o644))
	tr.Last = true
	start = time.Now()
	sent = round(t, from, to, tr, 2)
	middle := time.Now()
	_, err = to.FinishReceive(t.Context(), tr)
	must(t, err)
	t.Logf("last round: %d bytes in %v, finished in %v", sent, middle.Sub(start), time.Since(middle))
	start = time.Now()
	must(t, from.EndTransfer(t.Context(), "v"))
	t.Logf("ended in %v", time.Since(start))
	wantClean(t, from)
	wantClean(t, to)
}

// BenchmarkLastRound is the part of a move's outage that is the pools': little has changed since the round before.
func BenchmarkLastRound(b *testing.B) {
	from, err := Open(b.Context(), "from", b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	to, err := Open(b.Context(), "to", b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { // b.TempDir cannot remove what is read-only
		for _, p := range []*Pool{from, to} {
			_ = p.Delete(b.Context(), "v")
			_ = p.DeleteBase(b.Context(), "b", storage.Tree)
		}
	}()
	if err := from.AddBase(b.Context(), "b", storage.Tree, fill("base")); err != nil {
		b.Fatal(err)
	}
	var stream bytes.Buffer
	if err := errors.Join(from.SendBase(b.Context(), "b", storage.Tree, &stream), to.ReceiveBase(b.Context(), "b", storage.Tree, &stream)); err != nil {
		b.Fatal(err)
	}
	v, err := from.Clone(b.Context(), "b", storage.Tree, "v", api.GiB)
	if err != nil {
		b.Fatal(err)
	}
	tr := storage.Transfer{ID: "v", Kind: storage.Tree, Base: "b", Size: api.GiB}
	one := func(n int) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(from.SendRound(b.Context(), tr, n, w)) }()
		if err := to.ReceiveRound(b.Context(), tr, n, r); err != nil {
			b.Fatal(err)
		}
	}
	for _, load := range []string{"quiet", "neighbour"} {
		for _, last := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/last=%v", load, last), func(b *testing.B) {
				if load == "neighbour" { // who writes as much as the disk takes
					stop := neighbour(b, from.Path())
					defer stop()
				}
				for b.Loop() {
					b.StopTimer()
					tr.Last = false
					one(0)
					if err := os.WriteFile(v.Path+"/own", make([]byte, 20<<10), 0o600); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					tr.Last = last
					one(1)
					if _, err := to.FinishReceive(b.Context(), tr); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := errors.Join(from.EndTransfer(b.Context(), "v"), to.Delete(b.Context(), "v")); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
		}
	}
}

func neighbour(b *testing.B, dir string) (stop func()) {
	b.Helper()
	path := filepath.Join(dir, "neighbour")
	cmd := exec.Command("sh", "-c", "while :; do dd if=/dev/zero of="+path+" bs=1M count=300; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	time.Sleep(time.Second)
	return func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_ = os.Remove(path)
	}
}
