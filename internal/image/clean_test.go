package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"polder/internal/model"
)

func TestCleanLeavesOutTheIdentity(t *testing.T) {
	tree := t.TempDir()
	for name, content := range map[string]string{
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/hostname": "c1\n", "etc/hosts": "10.0.0.2 c1\n", "etc/resolv.conf": "nameserver 10.0.0.1\n",
		"etc/ssh/ssh_host_ed25519_key": "secret", "etc/ssh/ssh_host_dsa_key.pub": "old", "etc/ssh/sshd_config": "Port 22\n",
		"usr/lib/systemd/systemd-resolved": "", "var/lib/systemd/random-seed": "seed", "var/log/journal/0123/system.journal": "log", "var/log/app.log": "kept",
		"run/left": "", "tmp/left": "", "srv/data": "kept", "var/lib/cloud/instances/i-1/sem": "", "var/lib/cloud/scripts/kept": "",
	} {
		path := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		container bool
		changed   map[string]string
	}{
		{true, map[string]string{"./etc/machine-id": "", "./etc/hosts": "127.0.0.1 localhost\n", "./etc/resolv.conf": "-> ../run/systemd/resolve/stub-resolv.conf"}},
		{false, map[string]string{"./etc/machine-id": "", "./etc/hosts": "10.0.0.2 c1\n", "./etc/resolv.conf": "nameserver 10.0.0.1\n"}},
	} {
		clean, err := newCleaner(tree, c.container)
		if err != nil {
			t.Fatal(err)
		}
		var archive bytes.Buffer
		if err := packTree(t.Context(), tree, &archive, packing{clean: clean}); err != nil {
			t.Fatal(err)
		}
		got := contents(t, &archive)
		for name, want := range c.changed {
			if have, ok := got[name]; !ok || !strings.HasPrefix(have, want) || want == "" && have != "" {
				t.Errorf("container %v: %s is %q, want %q", c.container, name, have, want)
			}
		}
		for _, name := range []string{"./etc/ssh/sshd_config", "./srv/data", "./var/log/app.log", "./var/lib/cloud/scripts/kept", "./run/", "./tmp/", "./var/log/journal/"} {
			if _, ok := got[name]; !ok {
				t.Errorf("container %v: %s is not there", c.container, name)
			}
		}
		for name := range got {
			gone := slices.ContainsFunc(append(model.Identity(), "/etc/hostname", "/etc/ssh/ssh_host_dsa_key.pub"), func(f string) bool { return "."+f == name })
			if gone || strings.Contains(name, "/left") || strings.HasSuffix(name, ".journal") || strings.HasPrefix(name, "./var/lib/cloud/instances") {
				t.Errorf("container %v: %s is there", c.container, name)
			}
		}
	}
}

// contents gives the files of an archive, and where its links lead.
func contents(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	got := map[string]string{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return got
		} else if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if got[h.Name] = string(content); h.Typeflag == tar.TypeSymlink {
			got[h.Name] = "-> " + h.Linkname
		}
	}
}
