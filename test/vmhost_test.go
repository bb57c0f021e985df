//go:build scenario

package test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"polder/api"
)

// vmLab is a lab of one host with a kernel of its own, beside the others' lab.
func vmLab(t *testing.T) {
	t.Helper()
	t.Setenv("POLDER_LAB", *labDir+"-vm")
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Cleanup(func() {
		id := labID()
		if r := polder(context.Background(), "lab", "down"); r.code != 0 {
			t.Errorf("lab down: %s%s", r.out, r.err)
		}
		if left := leftovers(id); id == "" || left != "" {
			t.Errorf("lab %q left behind:\n%s", id, left)
		}
	})
	must(t, "lab", "up", "--backend", "vm")
}

// What hosts in namespaces can't show: a kernel of their own, all controllers, limits in force, and a death that takes
// everything but the disks.
func TestHostOfItsOwnKernel(t *testing.T) {
	vmLab(t)
	in := func(script string) string { return must(t, "lab", "exec", "h1", "--", "sh", "-c", script) }
	controllers := strings.Fields(in("cat /sys/fs/cgroup/cgroup.subtree_control"))
	for _, want := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		if !strings.Contains(" "+strings.Join(controllers, " ")+" ", " "+want+" ") {
			t.Errorf("controllers are %q: no %s", controllers, want)
		}
	}
	in("criu check --feature mem_dirty_track")
	if now, err := strconv.ParseInt(in("date +%s"), 10, 64); err != nil || time.Since(time.Unix(now, 0)).Abs() > 10*time.Second {
		t.Errorf("the host's clock says %d, %v", now, err)
	}

	importImage(t, appLayout(t, v1.Config{Entrypoint: []string{"/bin/sleep", "100000"}}), "sleeper")
	must(t, "launch", "sleeper", "small", "--memory", "64MiB")
	if r := polder(t.Context(), "exec", "small", "--", "/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=16M", "count=1"); r.code != 0 {
		t.Errorf("16 MiB of 64: exit %d: %s", r.code, r.err)
	}
	if r := polder(t.Context(), "exec", "small", "--", "/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"); r.code != 137 {
		t.Errorf("200 MiB of 64: exit %d, want it killed: %s", r.code, r.err)
	}

	in("echo kept >/root/kept && sync")
	boot := in("cat /proc/sys/kernel/random/uuid; cat /etc/machine-id")
	must(t, "lab", "kill", "h1")
	refused(t, 4, "is not running", "lab", "exec", "h1", "--", "true")
	must(t, "lab", "start", "h1")
	again := in("cat /proc/sys/kernel/random/uuid; cat /etc/machine-id")
	if a, b := strings.Fields(boot), strings.Fields(again); a[0] == b[0] || a[1] != b[1] {
		t.Errorf("random number and machine id before and after: %q, %q", boot, again)
	}
	if got := in("cat /root/kept"); got != "kept" {
		t.Errorf("its disk has %q", got)
	}
	eventually(t, 30*time.Second, func() string {
		if v := show[api.VE](t, "info", "small"); v.State != api.Running {
			return "small is " + string(v.State) + ": " + v.Reason
		}
		return ""
	})
}
