package storagetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/storage"
)

var diskTransfer = storage.Transfer{ID: "v", Kind: storage.Disk, Base: baseID, Size: 16 * api.MiB}

// patchDisk writes to random places of a disk, and where it is a raw file makes a hole.
func patchDisk(t *testing.T, v storage.Volume, r *rand.Rand, times int) {
	t.Helper()
	for range times {
		at, n, value := r.Int64N(int64(v.Size)-200000), 512*(1+r.IntN(300)), byte(r.Uint32())
		if v.Format != "raw" {
			at &^= 511
			qemuIO(t, v, at, n, value)
			continue
		}
		f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt(bytes.Repeat([]byte{value}, n), at)
		must(t, err)
		if r.IntN(3) == 0 {
			must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at&^4095, 128<<10))
		}
		must(t, f.Close())
	}
}

func (s Suite) wantSameDisk(t *testing.T, from, to storage.Pool) {
	t.Helper()
	a, err := from.Volume(t.Context(), "v")
	must(t, err)
	b, err := to.Volume(t.Context(), "v")
	must(t, err)
	if b.Size != a.Size || !bytes.Equal(s.content(t, a), s.content(t, b)) {
		t.Errorf("the disks differ: %+v, %+v", a, b)
	}
	one, err := os.Stat(a.Path)
	must(t, err)
	two, err := os.Stat(b.Path)
	if err != nil || one.Mode() != two.Mode() {
		t.Errorf("mode %s, want %s, %v", two.Mode(), one.Mode(), err)
	}
}

func (s Suite) sendDisk(t *testing.T) {
	for _, base := range []string{baseID, ""} {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		from, to := s.pair(t, storage.Disk)
		v, err := from.Clone(t.Context(), baseID, storage.Disk, "v", diskTransfer.Size)
		must(t, err)
		if base == "" && v.Format != "raw" {
			continue // it is nothing without its base
		}
		tr := diskTransfer
		tr.Base = base
		for n := range 3 {
			patchDisk(t, v, r, 5)
			tr.Last = n == 2
			sent := carry(t, from, to, tr, n)
			if most := int64(5 * 512 * 301 * 4); base != "" && sent > most {
				t.Errorf("round %d took %d bytes", n, sent)
			}
		}
		_, err = to.FinishReceive(t.Context(), tr)
		must(t, err)
		must(t, from.EndTransfer(t.Context(), "v"))
		s.wantSameDisk(t, from, to)
		wantEmptyTrash(t, from)
		wantEmptyTrash(t, to)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

func (s Suite) diskRoundsAgain(t *testing.T) {
	for range 2 {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		from, to := s.pair(t, storage.Disk)
		v, err := from.Clone(t.Context(), baseID, storage.Disk, "v", diskTransfer.Size)
		must(t, err)
		for n := range 3 {
			for range 3 {
				patchDisk(t, v, r, 2)
				var stream bytes.Buffer
				must(t, from.SendRound(t.Context(), diskTransfer, n, &stream))
				if r.IntN(2) == 0 {
					stream.Truncate(r.IntN(stream.Len()))
				}
				_ = to.ReceiveRound(t.Context(), diskTransfer, n, &stream)
			}
			patchDisk(t, v, r, 2)
			carry(t, from, to, diskTransfer, n)
		}
		_, err = to.FinishReceive(t.Context(), diskTransfer)
		must(t, err)
		must(t, from.EndTransfer(t.Context(), "v"))
		s.wantSameDisk(t, from, to)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

func (s Suite) makeDisk(t *testing.T) {
	from, _ := s.pair(t, storage.Disk)
	for _, base := range []string{baseID, ""} {
		tr := diskTransfer
		tr.Base = base
		v, err := from.MakeDisk(t.Context(), tr)
		must(t, err)
		again, err := from.MakeDisk(t.Context(), tr)
		if err != nil || again != v || v.Size != tr.Size {
			t.Errorf("got %+v, then %+v, %v", v, again, err)
		}
		content := s.content(t, v)
		if want := base != ""; len(content) != int(tr.Size) || (content[0] == 0xd1) != want || content[len(content)-1] != 0 {
			t.Errorf("a disk with the base %q has %d bytes: %x …", base, len(content), content[:4])
		}
		must(t, from.Delete(t.Context(), "v"))
	}
	wantNothing(t, from)
}

// receiveVariable tells a test process to do nothing but receive in the pool at its value until it is killed.
const receiveVariable = "POLDER_STORAGETEST_RECEIVE"

// receive is the part of Churn for that. The streams are in the pool's directory.
func (s Suite) receive(t *testing.T, path string) {
	t.Helper()
	p := s.Open(t, path)
	for {
		for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
			tr := storage.Transfer{ID: "v-" + string(kind), Kind: kind, Base: baseID, Size: diskTransfer.Size}
			for n := range 2 {
				stream, err := os.ReadFile(filepath.Join(path, string(kind)+string(rune('0'+n))))
				must(t, err)
				_ = p.ReceiveRound(t.Context(), tr, n, bytes.NewReader(stream))
			}
			_, _ = p.FinishReceive(t.Context(), tr)
			_ = p.Delete(t.Context(), tr.ID)
		}
	}
}

// receiverIsKilled: whenever a receiver is killed, what is there then is whole, and Tidy removes the rest.
func (s Suite) receiverIsKilled(t *testing.T) {
	from, to := s.pair(t, storage.Tree, storage.Disk)
	wants := map[storage.Kind]storage.Volume{}
	for _, kind := range []storage.Kind{storage.Tree, storage.Disk} {
		v, err := from.Clone(t.Context(), baseID, kind, "v-"+string(kind), diskTransfer.Size)
		must(t, err)
		tr := storage.Transfer{ID: v.ID, Kind: kind, Base: baseID, Size: diskTransfer.Size}
		for n := range 2 {
			s.write(t, v, api.MiB+api.Bytes(n))
			var stream bytes.Buffer
			must(t, from.SendRound(t.Context(), tr, n, &stream))
			must(t, os.WriteFile(filepath.Join(to.Path(), string(kind)+string(rune('0'+n))), stream.Bytes(), 0o600))
		}
		wants[kind] = v
	}
	top, _, _ := strings.Cut(t.Name(), "/")
	for range 15 {
		child := exec.Command(os.Args[0], "-test.run", "^"+top+"$")
		child.Env = append(os.Environ(), receiveVariable+"="+to.Path())
		must(t, child.Start())
		time.Sleep(time.Duration(50+rand.IntN(200)) * time.Millisecond)
		must(t, child.Process.Kill())
		_ = child.Wait()
		to = s.Open(t, to.Path())
		must(t, to.Tidy(t.Context()))
		wantEmptyTrash(t, to)
		list, err := to.Volumes(t.Context())
		must(t, err)
		for _, v := range list {
			if v.Kind == storage.Disk {
				if !bytes.Equal(s.content(t, v), s.content(t, wants[v.Kind])) {
					t.Error("a disk is not whole")
				}
			} else {
				a, unmount := s.Mount(t, v)
				b, unmountWant := s.Mount(t, wants[v.Kind])
				wantSame(t, a, b)
				unmount()
				unmountWant()
			}
			must(t, to.Delete(t.Context(), v.ID))
		}
		wantNothing(t, to)
	}
}

// qemuIO writes into a disk that is no raw file, as a hypervisor does.
func qemuIO(t *testing.T, v storage.Volume, at int64, n int, value byte) {
	t.Helper()
	write := fmt.Sprintf("write -q -P %d %d %d", value, at, n)
	if out, err := exec.Command("qemu-io", "-f", v.Format, "-c", write, v.Path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
}
