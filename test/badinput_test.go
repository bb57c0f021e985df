//go:build scenario

package test

import (
	"archive/tar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"polder/api"
)

// Bad input gets one clear line and the exit code of its kind, and leaves nothing behind.
func TestBadLaunch(t *testing.T) {
	before := remains(t)
	missing := filepath.Join(t.TempDir(), "user-data")
	for _, c := range []struct {
		code int
		text string
		args []string
	}{
		{3, "no/such", []string{"launch", "no/such", "bad"}},
		{2, "name", []string{"launch", "debian/13", "Bad_Name"}},
		{2, "name", []string{"launch", "debian/13", strings.Repeat("a", 64)}},
		{2, "1MiB", []string{"launch", "debian/13", "bad", "--memory", "1MiB"}},
		{1, "more than host", []string{"launch", "debian/13", "bad", "--memory", "900TiB"}},
		{2, "size", []string{"launch", "debian/13", "bad", "--memory", "lots"}},
		{2, "smaller than the image", []string{"launch", "debian/13", "bad", "--disk", "10MiB"}},
		{2, "smaller than the image", []string{"launch", "debian/13", "bad", "--disk", "10MiB", "--model", "vm"}},
		{2, "cpus", []string{"launch", "debian/13", "bad", "--cpus", "4096"}},
		{2, "model", []string{"launch", "debian/13", "bad", "--model", "jail"}},
		{2, "user-data", []string{"launch", "debian/13", "bad", "--cloud-init", missing}},
		{4, "cloud-init", []string{"launch", "debian/13", "bad", "--cloud-init", "/etc/hostname"}},
		{3, "h9", []string{"launch", "debian/13", "bad", "--host", "h9"}},
		{3, "bad", []string{"info", "bad"}},
		{3, "bad", []string{"start", "bad"}},
		{3, "bad", []string{"delete", "bad"}},
		{2, "unknown", []string{"launhc"}},
		{2, "flag", []string{"launch", "debian/13", "bad", "--no-such-flag"}},
	} {
		refused(t, c.code, c.text, c.args...)
	}
	if after := remains(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// remains is what is in the pool, in the VEs' directories and on the bridge of h1.
func remains(t *testing.T) string {
	t.Helper()
	return must(t, "lab", "exec", "h1", "--", "sh", "-c",
		"ls /var/lib/polder/ve /var/lib/polder/staging; find /var/lib/polder/pools/default -maxdepth 2 | sort; ip -o link | cut -d: -f2 | sort; ls /sys/fs/cgroup/polder 2>/dev/null | grep -v '\\.' ; true")
}

func TestNameTaken(t *testing.T) {
	launch(t, "debian/13", "taken")
	refused(t, 4, "exists", "launch", "debian/13", "taken")
	if v := show[api.VE](t, "info", "taken"); v.State != api.Running {
		t.Errorf("the VE that was there is %s", v.State)
	}
}

// Two launches of one name at the same time: one wins, the other is told.
func TestTwoLaunchesOfOneName(t *testing.T) {
	t.Cleanup(func() { polder(t.Context(), "delete", "twin") })
	codes := make([]int, 4)
	var wg sync.WaitGroup
	for i := range codes {
		wg.Go(func() { codes[i] = polder(t.Context(), "launch", "debian/13", "twin").code })
	}
	wg.Wait()
	var won, lost int
	for _, code := range codes {
		switch code {
		case 0:
			won++
		case 4:
			lost++
		}
	}
	if won != 1 || lost != len(codes)-1 {
		t.Errorf("exit codes %v, want one 0 and the rest 4", codes)
	}
	must(t, "delete", "twin")
}

func TestBadImages(t *testing.T) {
	before := remains(t)
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tarWith := func(name string, headers ...*tar.Header) string {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := tar.NewWriter(f)
		for _, h := range headers {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	qcow := filepath.Join(dir, "escape.qcow2")
	must(t, "lab", "exec", "h1", "--", "sh", "-c", "qemu-img create -q -f qcow2 -b /etc/passwd -F raw /shared/escape.qcow2")
	data, err := os.ReadFile(filepath.Join(*labDir, "shared", "escape.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(qcow, data, 0o644); err != nil {
		t.Fatal(err)
	}
	bomb := filepath.Join(dir, "bomb.tar.gz")
	if out, err := exec.Command("sh", "-c", "truncate -s 500M "+dir+"/big && tar -C "+dir+" -cf - --format=gnu big | gzip -1 > "+bomb).CombinedOutput(); err != nil {
		t.Fatalf("making the bomb: %v %s", err, out)
	}
	os.Remove(filepath.Join(dir, "big"))
	for _, c := range []struct{ text, path string }{
		{"..", tarWith("dots.tar", &tar.Header{Name: "../../etc/evil", Typeflag: tar.TypeReg, Mode: 0o644})},
		{"device", tarWith("dev.tar", &tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Mode: 0o644, Devmajor: 8})},
		{"link", tarWith("link.tar", &tar.Header{Name: "evil", Typeflag: tar.TypeLink, Linkname: "../../../etc/passwd"})},
		{"backing", qcow},
		{"", file("noise", []byte("this is no image at all"))},
		{"", file("empty", nil)},
	} {
		refused(t, 2, c.text, "image", "import", c.path, "bad/image")
	}
	refused(t, 3, "bad/image", "image", "info", "bad/image")
	refused(t, 2, "decompression bomb", "image", "import", bomb, "bad/bomb")
	if after := remains(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}
