package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hierarchy makes what looks like a cgroup2 mount with the group /polder.
func hierarchy(t *testing.T, controllers, enabled string) (root string) {
	t.Helper()
	root = t.TempDir()
	mustWrite(t, root, "cgroup.controllers", controllers)
	mustWrite(t, root, "cgroup.subtree_control", enabled)
	mustWrite(t, root, "polder/cgroup.subtree_control", "")
	return root
}

func TestHandDown(t *testing.T) {
	root := hierarchy(t, "cpu memory\n", "memory\n")
	wants := map[string]string{"memory": "memory\n", "cpu": "+cpu"} // memory is handed down by the root already
	for _, controller := range []string{"memory", "cpu"} {
		if err := handDown(root, filepath.Join(root, "polder"), controller); err != nil {
			t.Errorf("%s: %v", controller, err)
		}
		if got, _ := os.ReadFile(root + "/polder/cgroup.subtree_control"); string(got) != "+"+controller {
			t.Errorf("%s: the group was told %q", controller, got)
		}
		if got, _ := os.ReadFile(root + "/cgroup.subtree_control"); string(got) != wants[controller] {
			t.Errorf("%s: the root was told %q", controller, got)
		}
	}
	if err := handDown(root, filepath.Join(root, "polder"), "pids"); err == nil || !strings.Contains(err.Error(), "has no pids controller") {
		t.Errorf("a controller that the host has not: %v", err)
	}
}
