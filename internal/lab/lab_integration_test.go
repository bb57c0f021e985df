//go:build integration

package lab

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"polder/api"
)

// testLab is a lab of the test's own that leaves nothing behind, which is checked.
func testLab(t *testing.T) *Lab {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "l")
	l, err := openTest(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := leftovers(t, l)
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(before, leftovers(t, l)); d != "" {
			t.Errorf("left behind (-before +after):\n%s", d)
		}
	})
	return l
}

// leftovers is all that a lab could leave on the machine.
func leftovers(t *testing.T, l *Lab) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	found["mounts"], _ = mountsBelow(l.dir)
	for _, d := range loopDevices() {
		if strings.HasSuffix(d.file, "/"+poolFile) && strings.Contains(d.file, "/l/h") || strings.HasSuffix(d.file, "/left") {
			found["loops"] = append(found["loops"], d.name+" "+d.file)
		}
	}
	mount, err := machineCgroup()
	if err != nil {
		t.Fatal(err)
	}
	found["cgroups"], _ = filepath.Glob(filepath.Join(mount, cgroupPrefix+"*"))
	found["controllers"] = controllers(mount, "cgroup.subtree_control")
	for key, argv := range map[string][]string{"links": {"ip", "-o", "link"}, "tables": {"nft", "list", "tables"}} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			t.Fatal(argv, err)
		}
		for line := range strings.Lines(string(out)) {
			found[key] = append(found[key], strings.Join(strings.Fields(line)[:2], " "))
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		stat, _ := os.ReadFile(p + "/stat")
		cgroup, _ := os.ReadFile(p + "/cgroup")
		if strings.Contains(string(cgroup), cgroupPrefix+l.id) && !strings.Contains(string(stat), ") Z ") {
			found["processes"] = append(found["processes"], p)
		}
	}
	forward, _ := os.ReadFile(ipForward)
	found["forward"] = []string{string(forward)}
	if _, err := os.Stat(l.dir); err == nil {
		found["files"] = []string{l.dir}
	}
	if _, err := os.Stat(forwardNote); err == nil {
		found["files"] = append(found["files"], forwardNote)
	}
	for _, list := range found {
		sort.Strings(list)
	}
	return found
}

func up(t *testing.T, l *Lab, hosts int) []Host {
	t.Helper()
	list, err := l.Up(t.Context(), UpOptions{Hosts: hosts, Alone: true, PoolSize: leastPoolSize, Report: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// in runs a shell script in a host and gives its exit code and output.
func in(t *testing.T, l *Lab, host, script string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	code, err := l.Exec(t.Context(), host, []string{"sh", "-c", script}, strings.NewReader("input\n"), &out, &out)
	if err != nil {
		t.Fatal(err)
	}
	return code, strings.TrimSpace(out.String())
}

func mustIn(t *testing.T, l *Lab, host, script string) string {
	t.Helper()
	code, out := in(t, l, host, script)
	if code != 0 {
		t.Fatalf("%s: %s: exit %d: %s", host, script, code, out)
	}
	return out
}

func TestHostsOfALab(t *testing.T) {
	l := testLab(t)
	hosts := up(t, l, 2)
	if len(hosts) != 2 || hosts[0].Name != "h1" || hosts[1].State != HostRunning || hosts[1].PID == 0 {
		t.Fatalf("got %+v", hosts)
	}
	for script, want := range map[string]string{
		"hostname; cat /etc/hostname":        "h1\nh1",
		"cat":                                "input",
		"cat /proc/1/cmdline | tr '\\0' ' '": "polder lab init h1",
		"pgrep -fc '^polder serve --data /var/lib/polder'": "1",
		"grep -c . /proc/mounts | awk '{print ($1<40)}'":   "1",
		"stat -fc %T /var/lib/polder/pools/default":        "btrfs",
		"stat -fc %T /sys/fs/cgroup":                       "cgroup2fs",
		"cat /proc/self/cgroup | tail -1":                  "0::/init",
		"ls /sys/fs/cgroup/init/cgroup.procs":              "/sys/fs/cgroup/init/cgroup.procs",
		"readlink -f $(command -v polder)":                 "/opt/polder/bin/polder",
		"ls /sys/class/net | tr '\\n' ' '":                 "eth0 lo",
		"echo from h1 >/shared/f && cat /shared/f":         "from h1",
	} {
		if got := mustIn(t, l, "h1", script); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
	if code, _ := in(t, l, "h1", "exit 42"); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	if code, _ := in(t, l, "h1", "kill -9 $$"); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	if a, b := mustIn(t, l, "h1", "cat /etc/machine-id"), mustIn(t, l, "h2", "cat /etc/machine-id"); a == b || len(a) != 32 {
		t.Errorf("machine ids %q and %q", a, b)
	}
	if got := mustIn(t, l, "h2", "cat /shared/f"); got != "from h1" {
		t.Errorf("h2 reads %q in the shared directory", got)
	}
	more := up(t, l, 3)
	if len(more) != 3 || more[0].PID != hosts[0].PID {
		t.Errorf("a third host: got %+v", more)
	}
	mustIn(t, l, "h1", "ping -c1 -W2 h3")
}

func TestCutAndHeal(t *testing.T) {
	l := testLab(t)
	up(t, l, 2)
	mustIn(t, l, "h1", "ping -4 -c1 -W2 h2 && ping -6 -c1 -W2 h2")
	if err := l.Cut(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	if code, out := in(t, l, "h1", "ping -c1 -W1 h2"); code == 0 {
		t.Errorf("h2 answers through a cut cable: %s", out)
	}
	if hosts, _ := l.List(); hosts[1].State != HostCut || hosts[0].State != HostRunning {
		t.Errorf("got %+v", hosts)
	}
	if err := l.Heal(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	mustIn(t, l, "h1", "ping -4 -c3 -i0.2 -W2 h2 && ping -6 -c3 -i0.2 -W2 h2")
}

func TestCutBetweenTwo(t *testing.T) {
	l := testLab(t)
	up(t, l, 3)
	if err := l.CutBetween(t.Context(), "h2", "h1"); err != nil {
		t.Fatal(err)
	}
	if code, out := in(t, l, "h1", "ping -c1 -W1 h2"); code == 0 {
		t.Errorf("h2 answers h1: %s", out)
	}
	mustIn(t, l, "h3", "ping -c3 -i0.2 -W2 h1 && ping -c3 -i0.2 -W2 h2")
	if hosts, _ := l.List(); !slices.Equal(hosts[0].CutFrom, []string{"h2"}) || hosts[2].CutFrom != nil {
		t.Errorf("got %+v", hosts)
	}
	if err := l.HealBetween(t.Context(), "h1", "h2"); err != nil {
		t.Fatal(err)
	}
	mustIn(t, l, "h1", "ping -c3 -i0.2 -W2 h2")
}

func TestShapedCable(t *testing.T) {
	l := testLab(t)
	up(t, l, 2)
	shaped := func(s Shape) string {
		t.Helper()
		if err := l.Shape(t.Context(), "h1", s); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("nsenter", "--net="+l.path(switchFile), "tc", "qdisc").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	plain := shaped(Shape{})
	queues := shaped(Shape{RateBits: 1e6})
	if strings.Count(queues, "rate 1Mbit") != 2 {
		t.Errorf("queues of the switch: %s", queues)
	}
	if err := l.Kill(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Start(t.Context(), "h1", t.Logf); err != nil {
		t.Fatal(err)
	}
	mustIn(t, l, "h1", "ping -c3 -i0.2 -W2 h2")
	if hosts, _ := l.List(); hosts[0].Shape == nil || hosts[0].Shape.RateBits != 1e6 {
		t.Errorf("after its death: %+v", hosts[0])
	}
	shaped(Shape{LossPercent: 100})
	if code, out := in(t, l, "h1", "ping -c3 -i0.2 -W1 h2"); code == 0 {
		t.Errorf("h2 answers although everything is lost: %s", out)
	}
	if now := shaped(Shape{}); strings.Count(now, "\n") != strings.Count(plain, "\n") || strings.Contains(now, "tbf") {
		t.Errorf("a plain cable again: %s", now)
	}
	mustIn(t, l, "h1", "ping -c3 -i0.2 -W2 h2")
}

// A daemon that is killed comes back; what it left behind lives on.
func TestDaemonKilled(t *testing.T) {
	l := testLab(t)
	up(t, l, 1)
	mustIn(t, l, "h1", "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $! >/run/sleeper")
	old := mustIn(t, l, "h1", "pgrep -f '^polder serve'")
	mustIn(t, l, "h1", "kill -9 "+old)
	until(t, "the daemon comes back", func() bool {
		_, now := in(t, l, "h1", "pgrep -f '^polder serve'")
		return now != "" && now != old
	})
	mustIn(t, l, "h1", "kill -0 $(cat /run/sleeper)")
	if code, out := in(t, l, "h1", "ps -o stat= --ppid 1 | grep Z"); code == 0 {
		t.Errorf("zombies in the host: %s", out)
	}
}

// A host that is killed keeps its disk and its pool.
func TestHostKilled(t *testing.T) {
	l := testLab(t)
	up(t, l, 1)
	mustIn(t, l, "h1", "echo a >/etc/a; echo b >/var/lib/polder/b; btrfs -q subvolume create /var/lib/polder/pools/default/c; sync")
	mustIn(t, l, "h1", "truncate -s 1M /root/left /var/lib/polder/pools/default/left; losetup -f /root/left; losetup -f /var/lib/polder/pools/default/left")
	if err := l.Kill(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	if hosts, _ := l.List(); hosts[0].State != HostStopped || hosts[0].PID != 0 {
		t.Errorf("got %+v", hosts)
	}
	if _, err := l.Exec(t.Context(), "h1", []string{"true"}, nil, nil, nil); api.KindOf(err) != api.Precondition {
		t.Errorf("exec in a dead host: %v", err)
	}
	if err := l.Start(t.Context(), "h1", t.Logf); err != nil {
		t.Fatal(err)
	}
	mustIn(t, l, "h1", "cat /etc/a /var/lib/polder/b && btrfs subvolume show /var/lib/polder/pools/default/c")
	if err := l.Start(t.Context(), "h1", t.Logf); api.KindOf(err) != api.Precondition {
		t.Errorf("start of a running host: %v", err)
	}
}

// Its first process killed from outside, a host is dead; Down cleans up after it, and Up starts it again.
func TestFirstProcessKilled(t *testing.T) {
	l := testLab(t)
	pid := up(t, l, 1)[0].PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the host is gone", func() bool { return l.initPID("h1") == 0 })
	if again := up(t, l, 1); again[0].PID == pid || again[0].State != HostRunning {
		t.Errorf("got %+v", again)
	}
	syscall.Kill(l.initPID("h1"), syscall.SIGKILL)
}

// However far a lab command got before it was killed, Down removes what there is, and Up carries on with it.
func TestUpKilledAnywhere(t *testing.T) {
	l := testLab(t)
	before := leftovers(t, l)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	up(t, l, 2)
	whole := time.Since(start)
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	const steps = 30
	for i := range steps {
		cmd := exec.Command(self, "up", l.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(whole * time.Duration(i) / steps)
		cmd.Process.Kill()
		cmd.Wait()
		if i%4 == 3 {
			if hosts := up(t, l, 2); len(hosts) != 2 {
				t.Fatalf("step %d: got %+v", i, hosts)
			}
		}
		if err := l.Down(t.Context()); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if d := cmp.Diff(before, leftovers(t, l)); d != "" {
			t.Fatalf("step %d, killed after %s of %s: left behind (-before +after):\n%s", i, whole*time.Duration(i)/steps, whole, d)
		}
	}
}

// An Up that is called off removes what it made, and no more.
func TestUpCancelled(t *testing.T) {
	l := testLab(t)
	before := leftovers(t, l)
	l.daemon = []string{"sleep", "1000"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := l.Up(ctx, UpOptions{PoolSize: leastPoolSize}); api.KindOf(err) != api.Cancelled {
		t.Errorf("got %v", err)
	}
	if d := cmp.Diff(before, leftovers(t, l)); d != "" {
		t.Errorf("left behind (-before +after):\n%s", d)
	}
	l.daemon = []string{"polder", "serve", "--data", "/var/lib/polder"}
	up(t, l, 1)
	l.daemon = []string{"sleep", "1000"}
	ctx2, cancel2 := context.WithTimeout(t.Context(), time.Second)
	defer cancel2()
	if _, err := l.Up(ctx2, UpOptions{Hosts: 2, PoolSize: leastPoolSize}); api.KindOf(err) != api.Cancelled {
		t.Errorf("got %v", err)
	}
	if hosts, _ := l.List(); len(hosts) != 1 || hosts[0].State != HostRunning {
		t.Errorf("got %+v", hosts)
	}
}

// Two labs at once don't know of each other.
func TestTwoLabs(t *testing.T) {
	a, b := testLab(t), testLab(t)
	up(t, a, 1)
	up(t, b, 1)
	ra, _ := a.readRecord()
	rb, _ := b.readRecord()
	if ra.Subnet.Overlaps(rb.Subnet) {
		t.Errorf("both have %s", ra.Subnet)
	}
	other, _ := ra.address(1)
	if code, _ := in(t, b, "h1", "ping -c1 -W1 "+other.Addr().String()); code == 0 {
		t.Error("a host reaches one of another lab")
	}
	if err := b.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustIn(t, a, "h1", "true")
	if a.initPID("h1") == 0 {
		t.Error("the end of one lab ended another")
	}
	// The second one's cleanup, which runs first, compares with the time when there was none.
	if err := a.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
