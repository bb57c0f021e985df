//go:build integration

package network

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"polder/internal/model"
)

// The tests run in a network and a mount namespace of their own: what they set up and break is nobody else's, and what is
// left behind can be counted.
func TestMain(m *testing.M) {
	if os.Getenv(tapDevice) != "" {
		if err := tapOpener(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 2 && os.Args[1] == ProberArg {
		if err := Prober(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	const inside = "POLDER_NETWORK_TEST_INSIDE"
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// world is a host with a network that is up.
type world struct {
	*testing.T
	dir    string
	cfg    Config
	fabric *Fabric
	taken  map[netip.Addr]bool
	leases []Lease
}

func newWorld(t *testing.T) *world {
	t.Helper()
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "sysctl", "-q", "-w", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0") // may be inherited
	// The kernel takes the interfaces of the last test's VEs away in its own time.
	for range 100 {
		if run(t, "ip", "-o", "link", "show", "type", "veth") == "" {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	dir, err := os.MkdirTemp("/run", "polder-network-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{T: t, dir: filepath.Join(dir, "network"), cfg: testConfig(), taken: map[netip.Addr]bool{}}
	w.fabric = w.newFabric()
	t.Cleanup(func() {
		if err := w.newFabric().Down(context.Background()); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return w
}

// newFabric is what a daemon that was started again has.
func (w *world) newFabric() *Fabric {
	return NewFabric(w.dir, slog.New(slog.NewTextHandler(w.Output(), nil)))
}

func (w *world) up() {
	w.Helper()
	began := time.Now()
	if err := w.fabric.Up(w.Context(), w.cfg); err != nil {
		w.Fatal(err)
	}
	w.Logf("up took %v", time.Since(began))
}

// lease allocates addresses and publishes them.
func (w *world) lease(name string) Lease {
	w.Helper()
	l, err := Allocate(w.cfg, w.taken, "uuid of "+name)
	if err != nil {
		w.Fatal(err)
	}
	l.Name = name
	w.taken[l.IPv4.Addr()], w.taken[l.IPv6.Addr()] = true, true
	w.leases = append(w.leases, l)
	w.publish()
	return l
}

func (w *world) publish() {
	w.Helper()
	began := time.Now()
	if err := w.fabric.SetLeases(w.Context(), w.cfg, func(context.Context) ([]Lease, error) { return w.leases, nil }); err != nil {
		w.Fatal(err)
	}
	w.Logf("publishing %d leases took %v", len(w.leases), time.Since(began))
}

func (w *world) nic(l Lease) model.NIC {
	return model.NIC{
		Network: w.cfg.Name, Name: "eth0", HostName: HostName("uuid of "+l.Name, 0), MAC: l.MAC, MTU: w.cfg.MTU,
		Addresses: []netip.Prefix{l.IPv4, l.IPv6}, Gateways: []netip.Addr{w.cfg.IPv4.Addr(), w.cfg.IPv6.Addr()},
	}
}

// ve is a process in namespaces of its own, with the network's DNS in its resolv.conf.
type ve struct {
	w   *world
	pid int
}

func (w *world) process() ve {
	w.Helper()
	resolv := filepath.Join(filepath.Dir(w.dir), "resolv.conf")
	text := "nameserver " + w.cfg.IPv4.Addr().String() + "\nsearch " + w.cfg.Domain + "\n"
	if err := os.WriteFile(resolv, []byte(text), 0o644); err != nil {
		w.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "mount --bind "+resolv+" /etc/resolv.conf && echo ready && exec sleep infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 10)); err != nil {
		w.Fatal(err)
	}
	return ve{w, cmd.Process.Pid}
}

// container is a VE with an address, plugged in.
func (w *world) container(name string) ve {
	w.Helper()
	l, v := w.lease(name), w.process()
	began := time.Now()
	if err := w.fabric.Veth(w.Context(), w.nic(l), v.pid); err != nil {
		w.Fatal(err)
	}
	w.Logf("plugging %s took %v", name, time.Since(began))
	return v
}

// exec runs a command inside the VE.
func (v ve) exec(argv ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(v.pid), "-n", "-m", "--"}, argv...)...).CombinedOutput()
	return string(out), err
}

func (v ve) run(argv ...string) string {
	v.w.Helper()
	out, err := v.exec(argv...)
	if err != nil {
		v.w.Fatalf("%v: %v: %s", argv, err, out)
	}
	return out
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

// execOut runs a command that may fail.
func execOut(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

func wantIn(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in %q", want, text)
		}
	}
}

// eventually repeats a check for a while.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if check() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func parseMAC(t *testing.T, text string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}
