package storagetest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
)

// RunTransfer runs what is about sending: volumes and bases go from one pool to another of the same driver.
func (s Suite) RunTransfer(t *testing.T) {
	if s.Mount == nil {
		s.Mount = func(_ *testing.T, v storage.Volume) (string, func()) { return v.Path, func() {} }
	}
	for name, test := range map[string]func(*testing.T){
		"SendBase":          s.sendBase,
		"BaseIsCutOff":      s.baseIsCutOff,
		"SendTree":          s.sendTree,
		"SendNames":         s.sendNames,
		"SendDisk":          s.sendDisk,
		"RoundsAgain":       s.roundsAgain,
		"DiskRoundsAgain":   s.diskRoundsAgain,
		"CutOff":            s.cutOff,
		"ReceiverIsKilled":  s.receiverIsKilled,
		"OutOfOrder":        s.outOfOrder,
		"LeftOver":          s.leftOver,
		"MakeDisk":          s.makeDisk,
		"FilesInUse":        s.inUse,
		"GarbageIsNoStream": s.garbage,
	} {
		t.Run(name, test)
	}
}

// pair of pools of which both have the base baseID, one from the other.
func (s Suite) pair(t *testing.T, kinds ...storage.Kind) (from, to storage.Pool) {
	t.Helper()
	from, to = s.pool(t), s.pool(t)
	for _, kind := range kinds {
		must(t, from.AddBase(t.Context(), baseID, kind, fills()[kind]))
		carryBase(t, from, to, kind)
	}
	return from, to
}

func carryBase(t *testing.T, from, to storage.Pool, kind storage.Kind) {
	t.Helper()
	var stream bytes.Buffer
	must(t, from.SendBase(t.Context(), baseID, kind, &stream))
	must(t, to.ReceiveBase(t.Context(), baseID, kind, &stream))
}

// carry sends one round and says how many bytes that took.
func carry(t *testing.T, from, to storage.Pool, tr storage.Transfer, n int) int64 {
	t.Helper()
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := from.SendRound(t.Context(), tr, n, w)
		w.CloseWithError(err)
		sent <- err
	}()
	counted := &counter{r: r}
	err := to.ReceiveRound(t.Context(), tr, n, counted)
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

func (s Suite) sendBase(t *testing.T) {
	from, to := s.pair(t, storage.Tree, storage.Disk)
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		one, err := from.BaseOrigin(t.Context(), baseID, kind)
		must(t, err)
		two, err := to.BaseOrigin(t.Context(), baseID, kind)
		if err != nil || one == "" || one != two {
			t.Errorf("%s: origins %q and %q, %v", kind, one, two, err)
		}
		a, err := from.Base(t.Context(), baseID, kind)
		must(t, err)
		b, err := to.Base(t.Context(), baseID, kind)
		must(t, err)
		if kind == storage.Tree {
			wantSame(t, b, a)
		} else if read(t, a) != read(t, b) {
			t.Error("the disks differ")
		}
		if none, err := to.BaseOrigin(t.Context(), "none", kind); none != "" || err != nil {
			t.Errorf("got %q, %v", none, err)
		}
		rest := &counter{r: bytes.NewReader(make([]byte, 1000))}
		if err := to.ReceiveBase(t.Context(), baseID, kind, rest); err != nil || rest.n != 1000 {
			t.Errorf("of a base that is there %d bytes were read, %v", rest.n, err)
		}
	}
	bases, err := to.Bases(t.Context())
	slices.SortFunc(bases, func(a, b storage.Base) int { return bytes.Compare([]byte(a.Kind), []byte(b.Kind)) })
	if err != nil || !slices.Equal(bases, []storage.Base{{ID: baseID, Kind: storage.Disk}, {ID: baseID, Kind: storage.Tree}}) {
		t.Errorf("bases %v, %v", bases, err)
	}
	other := s.pool(t)
	must(t, other.AddBase(t.Context(), baseID, storage.Tree, fillTree))
	one, _ := from.BaseOrigin(t.Context(), baseID, storage.Tree)
	if two, _ := other.BaseOrigin(t.Context(), baseID, storage.Tree); one == two {
		t.Error("a base that was made elsewhere has the same origin")
	}
}

func (s Suite) baseIsCutOff(t *testing.T) {
	from, to := s.pool(t), s.pool(t)
	for kind, fill := range fills() {
		must(t, from.AddBase(t.Context(), baseID, kind, fill))
		var stream bytes.Buffer
		must(t, from.SendBase(t.Context(), baseID, kind, &stream))
		for range 20 {
			at := rand.IntN(stream.Len() - 1)
			if err := to.ReceiveBase(t.Context(), baseID, kind, bytes.NewReader(stream.Bytes()[:at])); err == nil {
				t.Fatalf("%s: %d of %d bytes made a base", kind, at, stream.Len())
			}
			_, err := to.Base(t.Context(), baseID, kind)
			wantKind(t, err, api.NotFound)
		}
	}
	wantEmptyTrash(t, to)
}

// mounted calls f with the root of a tree volume.
func (s Suite) mounted(t *testing.T, p storage.Pool, f func(root string)) {
	t.Helper()
	v, err := p.Volume(t.Context(), "v")
	must(t, err)
	root, unmount := s.Mount(t, v)
	defer unmount()
	f(root)
}

func (s Suite) wantSameVolume(t *testing.T, from, to storage.Pool) {
	t.Helper()
	s.mounted(t, from, func(a string) {
		s.mounted(t, to, func(b string) { wantSame(t, b, a) })
	})
}

var treeTransfer = storage.Transfer{ID: "v", Kind: storage.Tree, Base: baseID, Size: api.GiB}

// sendTree: a tree that is changed between the rounds arrives as it was at the last one.
func (s Suite) sendTree(t *testing.T) {
	for range 3 {
		seed := rand.Uint64()
		from, to := s.pair(t, storage.Tree)
		_, err := from.Clone(t.Context(), baseID, storage.Tree, "v", api.GiB)
		must(t, err)
		s.mounted(t, from, func(root string) {
			w := &scribbler{Rand: rand.New(rand.NewPCG(seed, 0)), root: root}
			for n := range 4 {
				w.scribble(60)
				tr := treeTransfer
				tr.Last = n == 3
				carry(t, from, to, tr, n)
				if _, err := to.Volume(t.Context(), "v"); api.KindOf(err) != api.NotFound {
					t.Errorf("it is there before its time: %v", err)
				}
			}
		})
		v, err := to.FinishReceive(t.Context(), treeTransfer)
		must(t, err)
		again, err := to.FinishReceive(t.Context(), treeTransfer)
		if err != nil || again != v || v.Size != api.GiB {
			t.Errorf("got %+v, %+v, %v", v, again, err)
		}
		must(t, from.EndTransfer(t.Context(), "v"))
		must(t, from.EndTransfer(t.Context(), "v"))
		s.wantSameVolume(t, from, to)
		must(t, to.Tidy(t.Context()))
		wantEmptyTrash(t, to)
		wantEmptyTrash(t, from)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// sendNames: of a file with two names, the one by which it was sent first goes, and a part of it becomes zeros.
func (s Suite) sendNames(t *testing.T) {
	from, to := s.pair(t, storage.Tree)
	_, err := from.Clone(t.Context(), baseID, storage.Tree, "v", api.GiB)
	must(t, err)
	s.mounted(t, from, func(root string) {
		a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
		must(t, os.WriteFile(a, bytes.Repeat([]byte("x"), 200000), 0o640))
		must(t, os.Link(a, b))
		carry(t, from, to, treeTransfer, 0)
		must(t, os.Remove(a))
		must(t, os.Truncate(b, 1000))
		must(t, os.Truncate(b, 150000))
		tr := treeTransfer
		tr.Last = true
		carry(t, from, to, tr, 1)
	})
	_, err = to.FinishReceive(t.Context(), treeTransfer)
	must(t, err)
	must(t, from.EndTransfer(t.Context(), "v"))
	s.wantSameVolume(t, from, to)
}

// roundsAgain: rounds are sent twice, whole or cut off, while the tree goes on changing.
func (s Suite) roundsAgain(t *testing.T) {
	for range 3 {
		seed := rand.Uint64()
		from, to := s.pair(t, storage.Tree)
		_, err := from.Clone(t.Context(), baseID, storage.Tree, "v", api.GiB)
		must(t, err)
		r := rand.New(rand.NewPCG(seed, 0))
		s.mounted(t, from, func(root string) {
			w := &scribbler{Rand: r, root: root}
			for n := range 4 {
				tr := treeTransfer
				tr.Last = n == 3
				for range 3 {
					w.scribble(25)
					if r.IntN(2) == 0 {
						carry(t, from, to, tr, n)
						continue
					}
					var stream bytes.Buffer
					must(t, from.SendRound(t.Context(), tr, n, &stream))
					if err := to.ReceiveRound(t.Context(), tr, n, bytes.NewReader(stream.Bytes()[:r.IntN(stream.Len())])); err == nil {
						t.Error("a part was taken for the whole")
					}
				}
				w.scribble(25)
				carry(t, from, to, tr, n)
			}
		})
		_, err = to.FinishReceive(t.Context(), treeTransfer)
		must(t, err)
		must(t, from.EndTransfer(t.Context(), "v"))
		s.wantSameVolume(t, from, to)
		must(t, to.Delete(t.Context(), "v"))
		must(t, to.Tidy(t.Context()))
		wantEmptyTrash(t, to)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// cutOff: streams end anywhere, and nothing remains.
func (s Suite) cutOff(t *testing.T) {
	from, to := s.pair(t, storage.Tree, storage.Disk)
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		tr := storage.Transfer{ID: "v", Kind: kind, Base: baseID, Size: api.GiB}
		v, err := from.Clone(t.Context(), baseID, kind, "v", api.GiB)
		must(t, err)
		s.write(t, v, 100000)
		var zero, one bytes.Buffer
		must(t, from.SendRound(t.Context(), tr, 0, &zero))
		s.write(t, v, 200000)
		must(t, from.SendRound(t.Context(), tr, 1, &one))
		for i := range 20 {
			stream, n := &zero, 0
			if i%2 == 1 {
				must(t, to.ReceiveRound(t.Context(), tr, 0, bytes.NewReader(zero.Bytes())))
				stream, n = &one, 1
			}
			at := rand.IntN(stream.Len())
			if err := to.ReceiveRound(t.Context(), tr, n, bytes.NewReader(stream.Bytes()[:at])); err == nil {
				t.Errorf("%s: %d of %d bytes are a round", kind, at, stream.Len())
			}
			if i%4 < 2 {
				must(t, to.EndTransfer(t.Context(), "v"))
			} else {
				to = s.Open(t, to.Path())
				must(t, to.Tidy(t.Context()))
			}
			wantNothing(t, to)
		}
		must(t, from.EndTransfer(t.Context(), "v"))
		must(t, from.Delete(t.Context(), "v"))
	}
}

func wantNothing(t *testing.T, p storage.Pool) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(p.Path(), "volumes"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	wantEmptyTrash(t, p)
}

func (s Suite) outOfOrder(t *testing.T) {
	from, to := s.pair(t, storage.Tree, storage.Disk)
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		tr := storage.Transfer{ID: "v", Kind: kind, Base: baseID, Size: 8 * api.MiB}
		_, err := from.Clone(t.Context(), baseID, kind, "v", 8*api.MiB)
		must(t, err)
		wantKind(t, from.SendRound(t.Context(), tr, 1, io.Discard), api.Precondition)
		var stream bytes.Buffer
		must(t, from.SendRound(t.Context(), tr, 0, &stream))
		wantKind(t, to.ReceiveRound(t.Context(), tr, 1, bytes.NewReader(stream.Bytes())), api.Precondition)
		_, err = to.FinishReceive(t.Context(), tr)
		wantKind(t, err, api.Precondition)
		must(t, to.EndTransfer(t.Context(), "v"))
		wantKind(t, from.ReceiveRound(t.Context(), tr, 0, bytes.NewReader(stream.Bytes())), api.Exists)
		tr.ID = "none"
		wantKind(t, from.SendRound(t.Context(), tr, 0, io.Discard), api.NotFound)
		tr.ID = "../x"
		wantKind(t, from.SendRound(t.Context(), tr, 0, io.Discard), api.Invalid)
		wantKind(t, to.ReceiveRound(t.Context(), tr, 0, &stream), api.Invalid)
		must(t, from.Delete(t.Context(), "v"))
	}
	wantNothing(t, to)
}

// leftOver: what a sender that died keeps beside a volume goes with Tidy, and with the volume.
func (s Suite) leftOver(t *testing.T) {
	from, _ := s.pair(t, storage.Tree, storage.Disk)
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		tr := storage.Transfer{ID: "v", Kind: kind, Base: baseID, Size: 8 * api.MiB}
		for _, end := range []func(){
			func() { must(t, s.Open(t, from.Path()).Tidy(t.Context())) },
			func() { must(t, from.EndTransfer(t.Context(), "v")) },
			func() { must(t, from.Delete(t.Context(), "v")) },
		} {
			v, err := from.Clone(t.Context(), baseID, kind, "v", 8*api.MiB)
			must(t, err)
			must(t, from.SendRound(t.Context(), tr, 0, io.Discard))
			s.write(t, v, 1000)
			must(t, from.SendRound(t.Context(), tr, 1, io.Discard))
			end()
			wantEmptyTrash(t, from)
		}
	}
	wantNothing(t, from)
}

func (s Suite) garbage(t *testing.T) {
	_, to := s.pair(t, storage.Tree, storage.Disk)
	for _, text := range []string{"", "x", "{}\n", "{\"v\":1}\n", string(bytes.Repeat([]byte{0xff}, 100000))} {
		for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
			tr := storage.Transfer{ID: "v", Kind: kind, Base: baseID, Size: diskSize}
			if err := to.ReceiveRound(t.Context(), tr, 0, bytes.NewReader([]byte(text))); err == nil {
				t.Errorf("%.20q is a round of a %s", text, kind)
			}
			must(t, to.EndTransfer(t.Context(), "v"))
			if err := to.ReceiveBase(t.Context(), "other", kind, bytes.NewReader([]byte(text))); err == nil {
				t.Errorf("%.20q is a base", text)
			}
		}
	}
	wantNothing(t, to)
}

// inUse: a tree that programs change all the time can be sent; what they have done by the last round arrives.
func (s Suite) inUse(t *testing.T) {
	from, to := s.pair(t, storage.Tree)
	_, err := from.Clone(t.Context(), baseID, storage.Tree, "v", api.GiB)
	must(t, err)
	s.mounted(t, from, func(root string) {
		mapped := mapFile(t, filepath.Join(root, mappedName))
		stop, stopped := make(chan bool), make(chan bool)
		go func() {
			defer close(stopped)
			for w := (&scribbler{Rand: rand.New(rand.NewPCG(rand.Uint64(), 0)), root: root}); ; {
				select {
				case <-stop:
					return
				default:
					w.scribble(1)
					mapped[w.IntN(len(mapped))]++
				}
			}
		}()
		tr := treeTransfer
		for n := range 10 {
			if tr.Last = n == 9; tr.Last {
				close(stop)
				<-stopped
			}
			carry(t, from, to, tr, n)
		}
		must(t, unix.Munmap(mapped))
	})
	_, err = to.FinishReceive(t.Context(), treeTransfer)
	must(t, err)
	must(t, from.EndTransfer(t.Context(), "v"))
	s.wantSameVolume(t, from, to)
}

// mapFile makes a file, to be changed through memory.
func mapFile(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(1<<20))
	mapped, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	return mapped
}
