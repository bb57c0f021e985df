//go:build integration

// These tests run as root on a Debian 13 host with crun and busybox-static installed, cgroup v2 at /sys/fs/cgroup and a
// temporary directory on a file system with id-mapped mounts (btrfs, ext4, xfs, tmpfs).
package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/crun"
	"polder/internal/model"
	"polder/internal/model/modeltest"
)

// initScript is a system's init in three lines: it halts when asked to (SIGPWR), and reaps.
const initScript = `#!/bin/sh
trap 'exit 0' PWR
while :; do sleep 1000 & wait; done
`

// fixture makes VEs out of a busybox.
type fixture struct {
	dir  string // on a file system with id-mapped mounts
	next atomic.Uint32
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	f := &fixture{dir: dir}
	return f
}

// tree makes a root file system.
func (f *fixture) tree(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "root", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Fatalf("the package busybox-static is needed: %v", err)
	}
	write(t, filepath.Join(dir, "bin/busybox"), string(busybox), 0o755)
	applets, err := exec.Command("/usr/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" && applet != "init" && applet != "login" {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(t, filepath.Join(dir, "sbin/init"), initScript, 0o755)
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/tmp:/bin/sh\n", 0o644)
	write(t, filepath.Join(dir, "etc/group"), "root:x:0:\nweb:x:102:\nlogs:x:103:web\n", 0o644)
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// spec makes a VE on a plain tree.
func (f *fixture) spec(t *testing.T) model.Spec {
	t.Helper()
	n := f.next.Add(1)
	ve := model.Spec{
		ID: uuid.NewString(), Name: fmt.Sprintf("t%d", n), Dir: filepath.Join(f.dir, fmt.Sprintf("ve%d", n)),
		Root: model.Root{Tree: filepath.Join(f.dir, fmt.Sprintf("tree%d", n))},
		CPUs: 1, Memory: 64 * api.MiB, IDBase: 1<<20 + n*65536, IDCount: 65536,
		Cgroup: fmt.Sprintf("/polder-test-%d/t%d", os.Getpid(), n),
	}
	if err := os.Mkdir(ve.Dir, 0o711); err != nil {
		t.Fatal(err)
	}
	f.tree(t, ve.Root.Tree)
	t.Cleanup(func() { _ = os.Remove(filepath.Dir(filepath.Join(cgroupMount, ve.Cgroup))) })
	return ve
}

// layered turns a VE's tree into the lower layer of an overlay.
func layered(t *testing.T, ve model.Spec) model.Spec {
	t.Helper()
	base := ve.Root.Tree + ".layers"
	layers := model.Layers{Lower: base + "/lower", Upper: base + "/rw/upper", Work: base + "/rw/work"}
	for _, dir := range []string{layers.Upper, layers.Work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(ve.Root.Tree, layers.Lower); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(ve.Root.Tree, 0o755); err != nil {
		t.Fatal(err)
	}
	ve.Root.Layers = &layers
	return ve
}

// leftovers looks for all that a VE may leave.
func leftovers(t *testing.T, ve model.Spec) (left []string) {
	t.Helper()
	for _, path := range []string{bundleDir(ve), string(cgroupOf(ve)), filepath.Join(stateDir, ve.ID), ve.LogPath()} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			left = append(left, path)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, ve.Dir+"/") || strings.Contains(line, ve.Root.Tree) {
			left = append(left, line)
		}
	}
	calls, _ := filepath.Glob(filepath.Join(execDir, ve.ID+"*"))
	return append(left, calls...)
}

func harness(t *testing.T, spec func(*testing.T) model.Spec) modeltest.Harness {
	return modeltest.Harness{
		New:       func(*testing.T) model.Model { return New() },
		Spec:      spec,
		Ready:     ready,
		Target:    target,
		Leftovers: leftovers,
		Grace:     5 * time.Second,
		Patience:  30 * time.Second,
	}
}

// target is a second host as far as the model can tell: other directories and groups. It shares the volume, since of two VEs
// that stand still only one ever goes on.
func target(t *testing.T, ve model.Spec) modeltest.Target {
	t.Helper()
	there := ve
	there.Dir = ve.Dir + ".there"
	there.Cgroup = ve.Cgroup + "-there"
	if err := os.Mkdir(there.Dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(there.Dir) })
	m := &Model{runtime: crun.Runtime{Root: filepath.Join(t.TempDir(), "crun")}}
	return modeltest.Target{Model: m, Spec: there, Volume: func(context.Context) (model.Root, error) { return there.Root, nil }}
}

// ready waits until the init has set its trap: its child is there.
func ready(ctx context.Context, m model.Model, ve model.Spec) error {
	p, _, ok, err := m.Adopt(ctx, ve)
	if err != nil || !ok {
		return errors.Join(err, errors.New("it does not run"))
	}
	for ctx.Err() == nil {
		if children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.PID, p.PID)); err == nil && len(children) > 0 {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return ctx.Err()
}

func TestModel(t *testing.T) {
	f := newFixture(t)
	modeltest.Run(t, harness(t, f.spec))
}

func TestModelOnOverlay(t *testing.T) {
	f := newFixture(t)
	modeltest.Run(t, harness(t, func(t *testing.T) model.Spec { return layered(t, f.spec(t)) }))
}

// running starts a VE and undoes it at the end.
func running(t *testing.T, ve model.Spec) (*Model, model.Process) {
	t.Helper()
	m := New()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	if err := m.Prepare(ctx, ve); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Remove(context.Background(), ve); err != nil {
			t.Error(err)
		}
		if left := leftovers(t, ve); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	})
	p, err := m.Start(ctx, ve)
	if err != nil {
		t.Fatal(err)
	}
	return m, p
}

// output runs a shell script in a VE.
func output(t *testing.T, m *Model, ve model.Spec, script string) string {
	t.Helper()
	var out strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	code, err := m.Exec(ctx, ve, api.ExecRequest{Command: []string{"sh", "-c", script}}, model.Streams{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	if code != 0 {
		t.Errorf("%s: exit code %d", script, code)
	}
	return out.String()
}

func ended(t *testing.T, p model.Process) model.Exit {
	t.Helper()
	select {
	case exit := <-p.Exited:
		return exit
	case <-time.After(30 * time.Second):
		t.Fatal("the VE has not ended")
		return model.Exit{}
	}
}

func TestIdentityAndOwnership(t *testing.T) {
	ve := newFixture(t).spec(t)
	// Hostile: links that lead out of the tree, and a pipe where a file is wanted.
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside, "untouched", 0o644)
	if err := errors.Join(os.Symlink(outside, ve.Root.Tree+"/etc/hostname"), os.Symlink("../../../../../../../.."+outside, ve.Root.Tree+"/etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	ve.CloudInit = model.CloudInit{UserData: "#cloud-config\n", MetaData: "instance-id: x\n"}
	ve.NICs = []model.NIC{{Name: "eth0", HostName: "none", Domain: "polder.internal", Addresses: []netip.Prefix{netip.MustParsePrefix("10.87.0.5/24")}, DNS: []netip.Addr{netip.MustParseAddr("10.87.0.1")}}}
	ve.Plug = noPlug{}
	m, _ := running(t, ve)
	if got, _ := os.ReadFile(outside); string(got) != "untouched" {
		t.Fatalf("a file outside of the tree was written: %q", got)
	}
	for name, want := range map[string]string{
		"etc/hostname":                             ve.Name + "\n",
		"etc/resolv.conf":                          "search polder.internal\nnameserver 10.87.0.1\n",
		"etc/machine-id":                           strings.ReplaceAll(ve.ID, "-", "") + "\n",
		"var/lib/cloud/seed/nocloud/user-data":     "#cloud-config\n",
		"var/lib/cloud/seed/nocloud/meta-data":     "instance-id: x\n",
		"run/systemd/system.conf.d/50-polder.conf": "",
	} {
		path := filepath.Join(ve.Root.Tree, name)
		got, err := os.ReadFile(path)
		if err != nil || want != "" && string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
		if uid := owner(t, path); uid != 0 {
			t.Errorf("%s belongs to %d on the volume, want 0", name, uid)
		}
	}
	if got := output(t, m, ve, "hostname; stat -c %u:%g /etc/hostname /sbin/init /root; touch /root/made; cat /proc/self/uid_map | tr -s ' '"); got !=
		fmt.Sprintf("%s\n0:0\n0:0\n0:0\n 0 %d 65536\n", ve.Name, ve.IDBase) {
		t.Errorf("inside: %q", got)
	}
	if uid := owner(t, ve.Root.Tree+"/root/made"); uid != 0 {
		t.Errorf("a file made inside belongs to %d on the volume, want 0", uid)
	}
}

func owner(t *testing.T, path string) int {
	t.Helper()
	out, err := exec.Command("stat", "-c", "%u", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var uid int
	if _, err := fmt.Sscan(string(out), &uid); err != nil {
		t.Fatal(err)
	}
	return uid
}

type noPlug struct{}

func (noPlug) Veth(context.Context, model.NIC, int) error   { return nil }
func (noPlug) Tap(context.Context, model.NIC, uint32) error { return nil }
func (noPlug) Unplug(context.Context, model.NIC) error      { return nil }

// A start that fails in the middle leaves nothing.
type brokenPlug struct{ noPlug }

func (brokenPlug) Veth(context.Context, model.NIC, int) error {
	return api.Errorf(api.Exhausted, "no more links")
}

func TestFailedStartLeavesNothing(t *testing.T) {
	ve := newFixture(t).spec(t)
	ve.NICs, ve.Plug = []model.NIC{{Name: "eth0", HostName: "none"}}, brokenPlug{}
	m := New()
	if err := m.Prepare(t.Context(), ve); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(t.Context(), ve); api.KindOf(err) != api.Exhausted {
		t.Errorf("start: %v; want the plug's error", err)
	}
	if err := m.Remove(t.Context(), ve); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, ve); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestApplication(t *testing.T) {
	ve := newFixture(t).spec(t)
	ve.App = &api.ImageConfig{
		Entrypoint: []string{"sh", "-c"}, Cmd: []string{"id -u; id -g; id -G; pwd; echo $GREETING $HOME; exit 3"},
		Env: []string{"GREETING=hello"}, User: "web", WorkingDir: "/tmp",
	}
	_, p := running(t, ve)
	if exit := ended(t, p); !exit.Crashed || exit.Reason != "exit status 3" {
		t.Errorf("it ended with %+v", exit)
	}
	log, err := os.ReadFile(ve.LogPath())
	if err != nil || string(log) != "101\n102\n102 103\n/tmp\nhello /tmp\n" {
		t.Errorf("log: %q, %v", log, err)
	}
}

func TestApplicationStopSignal(t *testing.T) {
	ve := newFixture(t).spec(t)
	ve.App = &api.ImageConfig{Cmd: []string{"sh", "-c", "trap 'echo asked; exit 0' USR1; echo ready; while :; do sleep 0.01; done"}, StopSignal: "SIGUSR1"}
	m, p := running(t, ve)
	for !strings.Contains(readLog(t, ve), "ready") {
		time.Sleep(time.Millisecond)
	}
	if err := m.Stop(t.Context(), ve, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if exit := ended(t, p); exit.Crashed || !strings.Contains(readLog(t, ve), "asked") {
		t.Errorf("it ended with %+v, log %q", exit, readLog(t, ve))
	}
}

func readLog(t *testing.T, ve model.Spec) string {
	t.Helper()
	log, err := os.ReadFile(ve.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

// The ways in which a VE can end from inside.
func TestEnds(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		name, init string
		want       model.Exit
	}{
		{"reboot", "#!/bin/sh\nexit 133\n", model.Exit{Reboot: true, Reason: "rebooted"}},
		{"poweroff", "#!/bin/sh\nexec busybox poweroff -f\n", model.Exit{Reason: "powered off"}},
		{"exit", "#!/bin/sh\nexit 0\n", model.Exit{Reason: "powered off"}},
		{"failure", "#!/bin/sh\nexit 4\n", model.Exit{Crashed: true, Reason: "exit status 4"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ve := f.spec(t)
			write(t, ve.Root.Tree+"/sbin/init", c.init, 0o755)
			_, p := running(t, ve)
			if exit := ended(t, p); exit != c.want {
				t.Errorf("it ended with %+v; want %+v", exit, c.want)
			}
		})
	}
}

func (noPlug) Attach(context.Context, model.NIC) error { return nil }

func (noPlug) Gate(context.Context, model.NIC, bool) error { return nil }
