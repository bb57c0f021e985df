//go:build integration

package vm

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/vishvananda/netlink"

	"polder/api"
	"polder/internal/model"
	"polder/internal/model/modeltest"
)

// These tests run real QEMU processes, as root, with a boot sector that prints and echoes on the serial port for a system;
// see testdata/boot.s. What needs an agent inside is tried on a real image by the scenarios.

// taps is a model.Plug that makes devices which lead nowhere.
type taps struct{}

func (taps) Veth(context.Context, model.NIC, int) error { return errors.New("a vm has no veth") }

func (taps) Tap(_ context.Context, nic model.NIC, uid uint32) error {
	if _, err := netlink.LinkByName(nic.HostName); err == nil {
		return nil
	}
	return netlink.LinkAdd(&netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: nic.HostName}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_ONE_QUEUE | netlink.TUNTAP_VNET_HDR, Owner: uid,
	})
}

func (taps) Unplug(_ context.Context, nic model.NIC) error {
	link, err := netlink.LinkByName(nic.HostName)
	if err != nil {
		return nil
	}
	return netlink.LinkDel(link)
}

// bootSpec is a VE whose disk has the boot sector.
func bootSpec(t *testing.T) model.Spec {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	id := uuid.NewString()
	ve := model.Spec{
		ID: id, Name: "t" + id[:8], Dir: filepath.Join(dir, "ve"),
		Root: model.Root{Disk: filepath.Join(dir, "disk,1.raw"), Format: "raw"},
		CPUs: 2, Memory: 32 * api.MiB, IDBase: 500000, IDCount: 65536, Plug: taps{},
		NICs:   []model.NIC{{Name: "eth0", HostName: "vm" + id[:8], MAC: "52:54:00:12:34:56", MTU: 1400}},
		Cgroup: "/polder-test/" + id,
	}
	boot, err := os.ReadFile("testdata/boot.bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(dir, 0o711), os.Mkdir(ve.Dir, 0o711),
		os.WriteFile(ve.Root.Disk, boot, 0o644), os.Truncate(ve.Root.Disk, 1<<20),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return ve
}

func leftovers(t *testing.T, ve model.Spec) (left []string) {
	if pid, err := holder(ve); err != nil || pid != 0 {
		left = append(left, "qemu")
	}
	if _, err := netlink.LinkByName(ve.NICs[0].HostName); err == nil {
		left = append(left, ve.NICs[0].HostName)
	}
	dir, err := cgroupDir(ve)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		left = append(left, dir)
	}
	files, err := os.ReadDir(ve.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, f := range files {
		left = append(left, f.Name())
	}
	return left
}

// withoutAgent hides what needs a system with an agent.
type withoutAgent struct {
	model.Model
	model.Consoler
	model.Mover
}

func TestConformance(t *testing.T) {
	modeltest.Run(t, modeltest.Harness{
		New: func(*testing.T) model.Model {
			m := New(Config{})
			return withoutAgent{m, m, m}
		},
		Spec: bootSpec,
		Target: func(t *testing.T, ve model.Spec) modeltest.Target {
			m, there := New(Config{}), at(t, ve)
			return modeltest.Target{Model: withoutAgent{m, m, m}, Spec: there, Volume: func(context.Context) (model.Root, error) {
				info, err := os.Stat(ve.Root.Disk)
				if err != nil {
					return model.Root{}, err
				}
				return there.Root, errors.Join(os.Truncate(there.Root.Disk, 0), os.Truncate(there.Root.Disk, info.Size()))
			}}
		},
		Leftovers: leftovers,
		Grace:     300 * time.Millisecond, // the system does not know of the power button
		Patience:  30 * time.Second,
	})
}

// started starts a VE and undoes it at the end.
func started(t *testing.T, m *Model, ve model.Spec) model.Process {
	t.Helper()
	t.Cleanup(func() {
		if err := errors.Join(m.Stop(context.Background(), ve, 0), m.Remove(context.Background(), ve)); err != nil {
			t.Error(err)
		}
	})
	p, err := m.Start(t.Context(), ve)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// terminal is someone at a console.
type terminal struct {
	in   *io.PipeWriter
	out  chan string
	done chan error
	seen strings.Builder
}

func (c *terminal) Write(p []byte) (int, error) { c.out <- string(p); return len(p), nil }

func sitDown(t *testing.T, m *Model, ve model.Spec) *terminal {
	t.Helper()
	r, w := io.Pipe()
	c := &terminal{in: w, out: make(chan string, 1024), done: make(chan error, 1)}
	go func() { c.done <- m.Console(t.Context(), ve, model.Streams{Stdin: r, Stdout: c}) }()
	return c
}

func (c *terminal) typed(t *testing.T, s string) {
	t.Helper()
	if _, err := io.WriteString(c.in, s); err != nil {
		t.Fatal(err)
	}
}

func (c *terminal) expect(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !strings.Contains(c.seen.String(), want) {
		select {
		case s := <-c.out:
			c.seen.WriteString(s)
		case <-deadline:
			t.Fatalf("console shows %q, want %q", c.seen.String(), want)
		}
	}
	c.seen.Reset()
}

// logged waits until the log has the text n times.
func logged(t *testing.T, ve model.Spec, text string, n int) {
	t.Helper()
	var log []byte
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		log, _ = os.ReadFile(ve.LogPath())
		if strings.Count(string(log), text) >= n {
			return
		}
	}
	t.Fatalf("the log is %q, want %q %d times", log, text, n)
}

func exitOf(t *testing.T, p model.Process) model.Exit {
	t.Helper()
	select {
	case exit := <-p.Exited:
		return exit
	case <-time.After(30 * time.Second):
		t.Fatal("the vm has not ended")
		return model.Exit{}
	}
}

func TestConsolesShareThePortAndTheLog(t *testing.T) {
	m, ve := New(Config{}), bootSpec(t)
	started(t, m, ve)
	logged(t, ve, "polder", 1) // with nobody attached
	one, two := sitDown(t, m, ve), sitDown(t, m, ve)
	one.typed(t, "abc")
	one.expect(t, "abc")
	two.expect(t, "abc")
	_ = one.in.Close()
	if err := <-one.done; err != nil {
		t.Errorf("leaving: %v", err)
	}
	two.typed(t, "def")
	two.expect(t, "def")
	_ = two.in.Close()
	<-two.done
	three := sitDown(t, New(Config{}), ve) // as after a restart of the daemon
	three.typed(t, "ghi")
	three.expect(t, "ghi")
	logged(t, ve, "abcdefghi", 1)
}

func TestRebootStaysAndPowerOffIsNoCrash(t *testing.T) {
	m, ve := New(Config{}), bootSpec(t)
	p := started(t, m, ve)
	c := sitDown(t, m, ve)
	logged(t, ve, "polder", 1)
	c.typed(t, "r")
	logged(t, ve, "polder", 2)
	if again, _, ok, err := m.Adopt(t.Context(), ve); err != nil || !ok || again.PID != p.PID {
		t.Fatalf("after a reboot: pid %d, %v, %v; want %d", again.PID, ok, err, p.PID)
	}
	c.typed(t, "q")
	if exit := exitOf(t, p); exit.Crashed || exit.Reason != "powered off" {
		t.Errorf("a system that powered off ended with %+v", exit)
	}
	if err := <-c.done; err != nil {
		t.Errorf("the console of a vm that ended: %v", err)
	}
	if exit, ok := New(Config{}).Ended(ve); !ok || exit.Crashed {
		t.Errorf("a daemon that comes later is told %+v, %v", exit, ok)
	}
}

func TestEndedKnowsACrash(t *testing.T) {
	m, ve := New(Config{}), bootSpec(t)
	p := started(t, m, ve)
	if exit, ok := m.Ended(ve); ok {
		t.Errorf("a vm that runs is said to have ended: %+v", exit)
	}
	w, err := model.WatchPID(p.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Signal(9); err != nil {
		t.Fatal(err)
	}
	if exit := exitOf(t, p); !exit.Crashed || !strings.Contains(exit.Reason, "killed") {
		t.Errorf("got %+v", exit)
	}
	if exit, ok := New(Config{}).Ended(ve); !ok || !exit.Crashed {
		t.Errorf("a daemon that comes later is told %+v, %v", exit, ok)
	}
}

func TestQEMURunsConfined(t *testing.T) {
	m, ve := New(Config{}), bootSpec(t)
	ve.CloudInit.UserData = "#cloud-config\npassword: secret\n"
	p := started(t, m, ve)
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t500000\t500000\t500000\t500000", "Gid:\t500000\t500000\t500000\t500000", "Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q", want)
		}
	}
	cgroup, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID), "cgroup"))
	if err != nil || !strings.Contains(string(cgroup), "0::"+ve.Cgroup+"\n") {
		t.Errorf("cgroup %q, %v; want %s", cgroup, err, ve.Cgroup)
	}
	for _, path := range []string{qmpSocket(ve), agentSocket(ve), consoleSocket(ve), seedFile(ve), ve.Root.Disk} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", path, info.Mode(), err)
		}
	}
}

func TestStartFailureLeavesNothingAndSaysWhy(t *testing.T) {
	m, ve := New(Config{}), bootSpec(t)
	ve.Root.Format = "qcow2" // which it is not
	_, err := m.Start(t.Context(), ve)
	if err == nil || !strings.Contains(err.Error(), "not in qcow2 format") {
		t.Errorf("got %v", err)
	}
	if err := m.Remove(t.Context(), ve); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, ve); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestUEFIStarts(t *testing.T) {
	m, ve := New(Config{}), bootSpec(t)
	ve.Firmware, ve.Memory = api.UEFI, 128*api.MiB
	started(t, m, ve)
	logged(t, ve, "BdsDxe", 1)
}

func TestAdoptIsFast(t *testing.T) {
	m, ve := New(Config{}), bootSpec(t)
	began := time.Now()
	started(t, m, ve)
	t.Logf("start until qemu answers: %s", time.Since(began))
	began = time.Now()
	if _, _, ok, err := New(Config{}).Adopt(t.Context(), ve); err != nil || !ok {
		t.Fatal(ok, err)
	}
	t.Logf("adopt: %s", time.Since(began))
}

// A daemon that was killed right after it had started QEMU leaves a process that holds no lock yet.
func TestProcessOfAStartCutOffIsEnded(t *testing.T) {
	m, ve := New(Config{}), bootSpec(t)
	cgroup, err := makeCgroup(ve)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	stray := exec.Command("sleep", "1000")
	stray.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	started(t, m, ve)
	if err := stray.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it ended with %v", err)
	}
}

func (taps) Attach(context.Context, model.NIC) error { return nil }

func (taps) Gate(context.Context, model.NIC, bool) error { return nil }
