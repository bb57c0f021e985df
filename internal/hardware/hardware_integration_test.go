//go:build integration

package hardware

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"polder/api"
)

// What a host of ours has must be found, and trying it leaves no link, process, mount or file behind.
func TestCapabilitiesOfAHost(t *testing.T) {
	dir := t.TempDir()
	before := belongings(t, dir)
	level := map[string]api.Capability{}
	start := time.Now()
	for _, c := range CapabilitiesAt(t.Context(), dir) {
		level[c.Name] = c
	}
	t.Logf("took %s", time.Since(start))
	for _, name := range append([]string{"overlayfs", "btrfs", "vxlan", "idmapped-mounts"}, essential...) {
		if level[name].Level != api.OK {
			t.Errorf("got %+v", level[name])
		}
	}
	if after := belongings(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func belongings(t *testing.T, dir string) string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	children, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var processes string
	for _, path := range children {
		text, _ := os.ReadFile(path) // a thread may have ended
		processes += string(text)
	}
	return fmt.Sprintf("links %v\nmounts %s\nfiles %v\nprocesses %s", links, mounts, files, processes)
}
