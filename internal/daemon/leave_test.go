package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestProcessesOfVEs(t *testing.T) {
	proc := t.TempDir()
	for pid, files := range map[string][2]string{
		"10":   {"0::/polder/c1/payload\n", "10 (systemd) S 1"},
		"11":   {"4:memory:/polder/v1\n0::/\n", "11 (qemu (x) Z) R 1"},
		"12":   {"0::/polder/c1\n", "12 (sh) Z 1"},              // dead already
		"13":   {"0::/polder.service\n", "13 (polder) S 1"},     // the daemon
		"14":   {"0::/system.slice/polder\n", "14 (other) S 1"}, // another's
		"self": {"0::/polder/c1\n", "10 (systemd) S 1"},
	} {
		if err := os.Mkdir(filepath.Join(proc, pid), 0o700); err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"cgroup", "stat"} {
			if err := os.WriteFile(filepath.Join(proc, pid, name), []byte(files[i]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := inVEs(proc)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, []int{10, 11}) {
		t.Errorf("got %v, %v", got, err)
	}
}
