//go:build integration

package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"polder/api"
	"polder/internal/model"
)

func TestInside(t *testing.T) {
	ve := newFixture(t).spec(t)
	m, _ := running(t, ve)
	for _, c := range []struct{ name, script, want string }{
		{"nested uts namespaces are refused", "unshare -u true 2>&1 || true", "unshare: unshare(0x4000000): Operation not permitted\n"},
		{"other nested namespaces are not", "unshare -n -m true && echo fine", "fine\n"},
		{"device nodes cannot be made", "mknod /tmp/sda b 8 0 2>&1 || true", "mknod: /tmp/sda: Operation not permitted\n"},
		{"kernel memory is out of sight", "wc -c < /proc/keys; wc -c < /proc/timer_list", "0\n0\n"},
		{"sysfs is read-only", "echo x > /sys/kernel/x 2>&1 || true", "sh: can't create /sys/kernel/x: Read-only file system\n"},
		{"the cgroup is its own", "mkdir /sys/fs/cgroup/a && rmdir /sys/fs/cgroup/a && grep ^0: /proc/self/cgroup", "0::/\n"},
		{"its limits are not", "echo 0 > /sys/fs/cgroup/cgroup.freeze 2>&1 || true", "sh: can't create /sys/fs/cgroup/cgroup.freeze: Permission denied\n"},
		{"settings of the host are not", "echo x > /proc/sys/kernel/core_pattern 2>&1 || true", "sh: can't create /proc/sys/kernel/core_pattern: Permission denied\n"},
		{"settings of its network are", "echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward", "1\n"},
		{"loopback is up", "ping -c 1 -W 2 127.0.0.1 > /dev/null && echo pong", "pong\n"},
		{"anybody may ping", "cat /proc/sys/net/ipv4/ping_group_range", "0\t65535\n"},
		{"the daemon's directory is not there", "ls " + filepath.Dir(ve.Dir) + " 2>&1 | tail -1 | grep -o No.*", "No such file or directory\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := output(t, m, ve, c.script); got != c.want {
				t.Errorf("%s: %q; want %q", c.script, got, c.want)
			}
		})
	}
}

// crun gives standard streams to the container's root user: never the host's devices.
func TestHostDevicesStayTheHosts(t *testing.T) {
	ve := newFixture(t).spec(t)
	m, _ := running(t, ve)
	for _, streams := range []model.Streams{{}, {Stdin: strings.NewReader(""), Stdout: io.Discard}} {
		if _, err := m.Exec(t.Context(), ve, api.ExecRequest{Command: []string{"true"}}, streams); err != nil {
			t.Fatal(err)
		}
	}
	mine, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	if _, err := m.Exec(t.Context(), ve, api.ExecRequest{Command: []string{"true"}}, model.Streams{Stdout: mine, Stderr: mine}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/dev/null", "/dev/zero", "/dev/tty", mine.Name()} {
		// Not "must be 0": a careless neighbour on the machine may have given it away.
		if uid := uint32(owner(t, path)); uid >= ve.IDBase && uid < ve.IDBase+ve.IDCount {
			t.Errorf("%s belongs to %d now", path, uid)
		}
	}
}

// While it runs, a VE holds no mount of the host, and of the daemon no thread; no goroutine is left of commands.
func TestARunningVECostsLittle(t *testing.T) {
	f := newFixture(t)
	first := f.spec(t)
	m, _ := running(t, first)
	_ = output(t, m, first, "true")
	before := threads(t)
	for range 12 {
		ve := f.spec(t)
		_, _ = running(t, ve)
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(mounts), ve.Dir) {
			t.Errorf("a mount of %s is still there: %v", ve.Name, err)
		}
	}
	if after := threads(t); after > before+6 {
		t.Errorf("12 VEs took %d threads", after-before)
	}
	still := goleak.IgnoreCurrent()
	stdin, feed := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	signals, sizes := make(chan string), make(chan api.Resize)
	for _, tty := range []bool{false, true} {
		if _, err := m.Exec(ctx, first, api.ExecRequest{Command: []string{"true"}, TTY: tty}, model.Streams{Stdin: stdin, Stdout: io.Discard, Stderr: io.Discard, Signals: signals, Resize: sizes}); err != nil {
			t.Fatal(err)
		}
	}
	_ = feed.Close() // the caller's input has ended: the last read of it with it
	goleak.VerifyNone(t, still)
}

func threads(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}

// vethPlug puts a NIC in with nothing at its other end.
type vethPlug struct{ noPlug }

func (vethPlug) Veth(_ context.Context, nic model.NIC, pid int) error {
	out, err := exec.Command("ip", "link", "add", nic.HostName, "type", "veth", "peer", "name", nic.Name, "netns", fmt.Sprint(pid)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (vethPlug) Unplug(_ context.Context, nic model.NIC) error {
	_ = exec.Command("ip", "link", "del", nic.HostName).Run()
	return nil
}

// The NIC is there before the first process runs.
func TestNetworkComesFirst(t *testing.T) {
	ve := newFixture(t).spec(t)
	write(t, ve.Root.Tree+"/sbin/init", "#!/bin/sh\ncat /sys/class/net/eth0/ifindex > /early\ntrap 'exit 0' PWR\nwhile :; do sleep 1000 & wait; done\n", 0o755)
	ve.NICs, ve.Plug = []model.NIC{{Name: "eth0", HostName: "pt" + ve.ID[:8]}}, vethPlug{}
	m, _ := running(t, ve)
	if got := output(t, m, ve, "while [ ! -s /early ]; do sleep 0.01; done; cat /early"); got == "" {
		t.Error("the first process saw no eth0")
	}
	if err := m.Stop(t.Context(), ve, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/sys/class/net/" + ve.NICs[0].HostName); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host's end of the NIC is still there: %v", err)
	}
}

// A start that was cut off by kill -9 at any point is made good by the next one.
func TestStartAfterCutOff(t *testing.T) {
	f := newFixture(t)
	for name, cut := range map[string]func(t *testing.T, m *Model, ve model.Spec){
		"mounted": func(t *testing.T, m *Model, ve model.Spec) { _, _ = mountRoot(ve) },
		"created": func(t *testing.T, m *Model, ve model.Spec) { _, _ = m.create(t.Context(), ve) },
		"no record": func(t *testing.T, m *Model, ve model.Spec) {
			_, _ = m.create(t.Context(), ve)
			_ = os.Remove(recordFile(ve))
		},
		"no state": func(t *testing.T, m *Model, ve model.Spec) {
			_, _ = m.create(t.Context(), ve)
			_ = os.RemoveAll(filepath.Join(stateDir, ve.ID))
		},
	} {
		t.Run(name, func(t *testing.T) {
			ve := f.spec(t)
			m := New()
			if err := m.Prepare(t.Context(), ve); err != nil {
				t.Fatal(err)
			}
			cut(t, m, ve)
			if name != "no state" { // what was let go without its state is taken for running: nothing else can be known
				if _, _, ok, err := m.Adopt(t.Context(), ve); ok || err != nil {
					t.Fatalf("adopted a VE that was never let go: %v", err)
				}
			} else if err := m.Stop(t.Context(), ve, 0); err != nil {
				t.Fatal(err)
			}
			_, p := running(t, ve)
			if err := m.Stop(t.Context(), ve, 0); err != nil {
				t.Fatal(err)
			}
			ended(t, p)
		})
	}
}

// A record of another boot, or of a pid that is another's by now, is no VE.
func TestAdoptIsNotFooled(t *testing.T) {
	ve := newFixture(t).spec(t)
	m, p := running(t, ve)
	for name, content := range map[string]string{
		"another boot":    fmt.Sprintf(`{"version":1,"pid":%d,"start_time":1,"boot":"other"}`, p.PID),
		"another process": fmt.Sprintf(`{"version":1,"pid":%d,"start_time":1,"boot":%q}`, p.PID, boot(t)),
		"no process":      fmt.Sprintf(`{"version":1,"pid":4194303,"start_time":1,"boot":%q}`, boot(t)),
		"cut short":       `{"version":1,"pid":`,
		"empty":           ``,
	} {
		write(t, recordFile(ve), content, 0o600)
		if q, _, ok, err := m.Adopt(t.Context(), ve); ok || err != nil {
			t.Errorf("%s: adopted %+v, %v", name, q, err)
		}
	}
	write(t, recordFile(ve), `{"version":2,"pid":5}`, 0o600)
	if _, _, _, err := m.Adopt(t.Context(), ve); err == nil {
		t.Error("a record of a newer Polder was understood")
	}
}

func boot(t *testing.T) string {
	t.Helper()
	id, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A root that cannot be given its identity is told as what it is, and leaves nothing.
func TestRootInTheWay(t *testing.T) {
	ve := newFixture(t).spec(t)
	if err := os.MkdirAll(ve.Root.Tree+"/etc/hosts/in/the/way", 0o755); err != nil {
		t.Fatal(err)
	}
	m := New()
	if err := m.Prepare(t.Context(), ve); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(t.Context(), ve); api.KindOf(err) != api.Precondition || !strings.Contains(err.Error(), "/etc/hosts") {
		t.Errorf("start: %v; want a precondition error that names the file", err)
	}
	if err := m.Remove(t.Context(), ve); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, ve); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestApplicationDirectoryIsMade(t *testing.T) {
	ve := newFixture(t).spec(t)
	ve.App = &api.ImageConfig{Cmd: []string{"pwd"}, WorkingDir: "/not/there/yet"}
	_, p := running(t, ve)
	if exit := ended(t, p); exit.Crashed || readLog(t, ve) != "/not/there/yet\n" {
		t.Errorf("it ended with %+v, log %q", exit, readLog(t, ve))
	}
}

// A program that is not there is the image's fault, and the error says which.
func TestApplicationWithoutItsProgram(t *testing.T) {
	ve := newFixture(t).spec(t)
	ve.App = &api.ImageConfig{Cmd: []string{"/no/such/program"}}
	m := New()
	if err := m.Prepare(t.Context(), ve); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(t.Context(), ve); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start: %v", err)
	}
	if err := m.Remove(t.Context(), ve); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, ve); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func (vethPlug) Attach(context.Context, model.NIC) error { return nil }

func (vethPlug) Gate(context.Context, model.NIC, bool) error { return nil }
