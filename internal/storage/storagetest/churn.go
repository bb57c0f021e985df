package storagetest

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"polder/api"
	"polder/internal/storage"
)

// churnVariable tells a test process to do nothing but use the pool at its value until it is killed.
const churnVariable = "POLDER_STORAGETEST_CHURN"

// Churn must be called first by every test that calls Run; when it returns true, the process was only to be killed, and
// the test returns.
func (s Suite) Churn(t *testing.T) bool {
	if path := os.Getenv(receiveVariable); path != "" {
		s.receive(t, path)
	}
	path := os.Getenv(churnVariable)
	if path == "" {
		return false
	}
	p := s.Open(t, path)
	for i := range 4 {
		go func() {
			for {
				s.churn(p, "b"+id(i), id(i), []storage.Kind{storage.Tree, storage.Disk}[i%2])
			}
		}()
	}
	<-t.Context().Done() // never: the process is killed
	return true
}

// churn does everything once. Errors do not matter: what the parent finds afterwards does.
func (s Suite) churn(p storage.Pool, base, volume string, kind storage.Kind) {
	ctx := context.Background()
	_ = p.AddBase(ctx, base, kind, fills()[kind])
	_, _ = p.Clone(ctx, base, kind, volume, 8*api.MiB)
	_ = p.Delete(ctx, volume)
	_, _ = p.Clone(ctx, base, kind, volume+"-2", 0)
	_ = p.Delete(ctx, volume+"-2")
	_ = p.DeleteBase(ctx, base, kind)
}

// killed uses a pool in another process, which is killed at any instant, again and again: what is there then is whole,
// and Tidy removes the rest.
func (s Suite) killed(t *testing.T) {
	path := s.Dir(t)
	top, _, _ := strings.Cut(t.Name(), "/")
	for range 15 {
		child := exec.Command(os.Args[0], "-test.run", "^"+top+"$")
		child.Env = append(os.Environ(), churnVariable+"="+path)
		must(t, child.Start())
		waitFor(t, filepath.Join(path, "volumes"))
		time.Sleep(time.Duration(20+rand.IntN(150)) * time.Millisecond)
		must(t, child.Process.Kill())
		_ = child.Wait()

		p := s.Open(t, path)
		must(t, p.Tidy(t.Context()))
		wantEmptyTrash(t, p)
		s.wantWhole(t, p)
	}
	p := s.Open(t, path)
	list, err := p.Volumes(t.Context())
	must(t, err)
	for _, v := range list {
		must(t, p.Delete(t.Context(), v.ID))
	}
	for i := range 4 {
		for kind := range fills() {
			must(t, p.DeleteBase(t.Context(), "b"+id(i), kind))
		}
	}
	for _, section := range []string{"bases", "volumes"} {
		if entries, err := os.ReadDir(filepath.Join(path, section)); err != nil || len(entries) > 0 {
			t.Errorf("%s has %v, %v", section, entries, err)
		}
	}
}

func waitFor(t *testing.T, path string) {
	t.Helper()
	for range 5000 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%s does not appear", path)
}

// wantWhole looks at all that is in a pool.
func (s Suite) wantWhole(t *testing.T, p storage.Pool) {
	t.Helper()
	list, err := p.Volumes(t.Context())
	must(t, err)
	for _, v := range list {
		if v.Kind == storage.Disk {
			if content := s.content(t, v); len(content) != int(v.Size) || content[0] != 0xd1 || content[diskSize-1] != 0xd1 {
				t.Errorf("disk %s is not whole", v.ID)
			}
			continue
		}
		root, unmount := s.Mount(t, v)
		if len(read(t, filepath.Join(root, "usr/bin/program"))) != 7*30000 {
			t.Errorf("tree %s is not whole", v.ID)
		}
		unmount()
	}
	for i := range 4 {
		if tree, err := p.Base(t.Context(), "b"+id(i), storage.Tree); err == nil && len(read(t, tree+"/usr/bin/program")) != 7*30000 {
			t.Errorf("base %s is not whole", tree)
		}
		if disk, err := p.Base(t.Context(), "b"+id(i), storage.Disk); err == nil && len(read(t, disk)) != int(diskSize) {
			t.Errorf("base %s is not whole", disk)
		}
	}
}
