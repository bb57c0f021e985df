//go:build scenario

package test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"polder/api"
)

// The same image as a container and as a VM: both boot cleanly, each with its own kernel story, and reach each other by name.
func TestSameImageUnderTwoModels(t *testing.T) {
	launch(t, "debian/13", "c1")
	vm := launch(t, "debian/13", "v1", "--model", "vm", "--memory", "512MiB")
	booted(t, "c1", time.Minute)
	booted(t, "v1", 4*time.Minute)

	image := show[api.Image](t, "image", "info", "debian/13")
	host := show[[]api.Host](t, "host", "list")[0]
	if got := must(t, "exec", "c1", "--", "uname", "-r"); got != host.Kernel {
		t.Errorf("container's kernel is %q, the host's is %q", got, host.Kernel)
	}
	if got := must(t, "exec", "v1", "--", "uname", "-r"); got != image.Kernel || got == host.Kernel {
		t.Errorf("vm's kernel is %q; the image's is %q, the host's %q", got, image.Kernel, host.Kernel)
	}
	if vm.Accelerator != "kvm" && vm.Accelerator != "tcg" {
		t.Errorf("accelerator is %q", vm.Accelerator)
	}
	for _, pair := range [][2]string{{"c1", "v1"}, {"v1", "c1"}} {
		for _, family := range []string{"-4", "-6"} {
			// systemd may be up before it has configured the network.
			eventually(t, time.Minute, func() string {
				r := polder(t.Context(), "exec", pair[0], "--", "ping", family, "-c", "1", "-W", "2", pair[1])
				if r.code != 0 {
					return r.out + r.err
				}
				return ""
			})
		}
		must(t, "exec", pair[0], "--", "ping", "-c", "1", "-W", "5", pair[1]+".polder.internal")
	}
	for _, name := range []string{"c1", "v1"} {
		if got := must(t, "exec", name, "--", "hostname"); got != name {
			t.Errorf("hostname in %s is %q", name, got)
		}
		checkShape(t, show[api.VE](t, "info", name))
	}
	checkIdentity(t, "c1", "v1")
}

// checkShape holds a VE against the contract of the command line.
func checkShape(t *testing.T, v api.VE) {
	t.Helper()
	if v.State != api.Running || v.Host != "h1" || v.Image != "debian/13" || v.CPUs != 1 || v.PID <= 1 || v.CreatedAt.IsZero() {
		t.Errorf("%s is shown as %+v", v.Name, v)
	}
	if len(v.Addresses) != 2 {
		t.Fatalf("%s has the addresses %v, want one IPv4 and one IPv6", v.Name, v.Addresses)
	}
	for _, a := range v.Addresses {
		if _, err := netip.ParsePrefix(a.Address); err != nil || a.Network != "default" || a.MAC == "" {
			t.Errorf("%s has the address %+v", v.Name, a)
		}
	}
}

// checkIdentity compares what must differ between VEs of one image.
func checkIdentity(t *testing.T, names ...string) {
	t.Helper()
	for _, file := range []string{"/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"} {
		seen := map[string]string{}
		for _, name := range names {
			text := must(t, "exec", name, "--", "cat", file)
			if other, dup := seen[text]; dup || text == "" {
				t.Errorf("%s of %s is %q, as that of %s", file, name, text, other)
			}
			seen[text] = name
		}
	}
}

// The daemon is disposable: killed, it leaves VEs undisturbed, and the next one adopts them under the same pids.
func TestDaemonKilled(t *testing.T) {
	launch(t, "debian/13", "k1")
	launch(t, "debian/13", "k2", "--model", "vm")
	must(t, "exec", "k1", "--", "sh", "-c", "nohup sh -c 'while :; do date +%s%N >/run/tick; sleep 0.1; done' >/dev/null 2>&1 &")
	before := show[[]api.VE](t, "list")
	killDaemon(t, "h1")
	var after []api.VE
	eventually(t, 10*time.Second, func() string {
		r := polder(t.Context(), "list")
		if r.code != 0 {
			return r.err
		}
		after = show[[]api.VE](t, "list")
		return ""
	})
	for i, v := range before {
		if after[i].Name != v.Name || after[i].PID != v.PID || after[i].State != api.Running {
			t.Errorf("%s was pid %d, and is %s %s pid %d now", v.Name, v.PID, after[i].Name, after[i].State, after[i].PID)
		}
	}
	tick := must(t, "exec", "k1", "--", "cat", "/run/tick")
	eventually(t, 5*time.Second, func() string {
		if must(t, "exec", "k1", "--", "cat", "/run/tick") == tick {
			return "the process in k1 stands still"
		}
		return ""
	})
}

// killDaemon kills the daemon of a host with SIGKILL and waits until that process is gone.
func killDaemon(t *testing.T, host string) {
	t.Helper()
	pid := strings.Fields(must(t, "lab", "exec", host, "--", "pgrep", "-x", "-f", ".*polder serve.*"))[0]
	must(t, "lab", "exec", host, "--", "kill", "-9", pid)
	eventually(t, 5*time.Second, func() string {
		if r := polder(t.Context(), "lab", "exec", host, "--", "kill", "-0", pid); r.code == 0 {
			return "the daemon lives"
		}
		return ""
	})
}

// A VE that crashes is started again by its policy, and says why.
func TestCrashOfOneVE(t *testing.T) {
	launch(t, "debian/13", "crash1")
	launch(t, "debian/13", "crash2", "--restart", "never")
	for _, name := range []string{"crash1", "crash2"} {
		must(t, "lab", "exec", "h1", "--", "kill", "-9", strconv.Itoa(show[api.VE](t, "info", name).PID))
	}
	eventually(t, 20*time.Second, func() string {
		if v := show[api.VE](t, "info", "crash1"); v.State != api.Running || v.Restarts != 1 || v.Reason == "" {
			return "crash1 is " + string(v.State) + ": " + v.Reason
		}
		if v := show[api.VE](t, "info", "crash2"); v.State != api.Failed || v.Reason == "" {
			return "crash2 is " + string(v.State) + ": " + v.Reason
		}
		return ""
	})
	must(t, "start", "crash2")
}

func TestLifecycle(t *testing.T) {
	launch(t, "debian/13", "life", "--label", "role=test", "--label", "tier=1")
	booted(t, "life", time.Minute)
	steps := []struct {
		verb string
		want api.State
	}{
		{"pause", api.Paused}, {"resume", api.Running}, {"restart", api.Running}, {"stop", api.Stopped}, {"start", api.Running},
	}
	for _, step := range steps {
		must(t, step.verb, "life")
		if v := show[api.VE](t, "info", "life"); v.State != step.want {
			t.Fatalf("after %s the VE is %s, want %s", step.verb, v.State, step.want)
		}
	}
	refused(t, 4, "running", "start", "life")
	if v := show[api.VE](t, "info", "life"); v.Labels["role"] != "test" || v.Labels["tier"] != "1" {
		t.Errorf("labels are %v", v.Labels)
	}
	if r := polder(t.Context(), "exec", "life", "--", "sh", "-c", "echo out; echo err >&2; exit 7"); r.code != 7 || r.out != "out\n" || r.err != "err\n" {
		t.Errorf("exec gave %+v", r)
	}
	launch(t, "debian/13", "gone", "--ephemeral")
	must(t, "stop", "gone")
	refused(t, 3, "gone", "info", "gone")
}

// cp carries content, modes and directories both ways, under both models.
func TestCopy(t *testing.T) {
	launch(t, "debian/13", "cp1")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "d/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("content\n", 100_000)
	if err := os.WriteFile(filepath.Join(dir, "d/sub/f"), []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", filepath.Join(dir, "d"), "cp1:/root/")
	must(t, "cp", "cp1:/root/d", filepath.Join(dir, "back"))
	got, err := os.ReadFile(filepath.Join(dir, "back/sub/f"))
	if err != nil || string(got) != text {
		t.Errorf("came back as %d bytes, %v", len(got), err)
	}
}
