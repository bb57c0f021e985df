package lab

import (
	"bytes"
	"encoding/gob"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"polder/api"
)

func TestCommandLineOfAMachine(t *testing.T) {
	saving := machine{
		image: "/cache/root/vm-1", saving: true, dir: "/cache/root/vm-1", shared: "/cache/root/vm-1/run", images: "/cache/root/vm-1/run",
		uuid: machineUUID("saved", "image"), network: [2]string{"ifname=tap0", "ifname=tap1"},
	}
	host := machine{
		image: "/cache/root/vm-1", kvm: true, dir: "/lab/h1", shared: "/lab", images: "/cache/images",
		uuid: machineUUID("0a1b2c3d", "h1"), network: [2]string{"fd=5", "fd=6"},
	}
	got := strings.Join(saving.args(), "\n") + "\n\n" + strings.Join(host.args(), "\n") + "\n"
	const golden = "testdata/qemu.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("QEMU's command line (-want +got); with -update it is the new one:\n%s", d)
	}
}

// A state is only for a machine with the same devices.
func TestSavedMachineHasTheHostsDevices(t *testing.T) {
	devices := func(m machine) (list []string) {
		args := m.args()
		for i, a := range args {
			if slices.Contains([]string{"-device", "-machine", "-cpu", "-smp", "-m", "-accel"}, a) {
				list = append(list, args[i+1])
			}
		}
		return list
	}
	if d := cmp.Diff(devices(machine{saving: true}), devices(machine{dir: "/lab/h1"})); d != "" {
		t.Error(d)
	}
}

func TestPathsThatQEMUCannotTake(t *testing.T) {
	if err := (machine{dir: "/lab,h1"}).checkPaths(); api.KindOf(err) != api.Invalid {
		t.Errorf("got %v", err)
	}
	if err := (machine{dir: "/lab/h1", image: "/cache"}).checkPaths(); err != nil {
		t.Error(err)
	}
}

func TestImageIsForItsRoot(t *testing.T) {
	a, b := imageKey("/cache/root/1", false), imageKey("/cache/root/2", false)
	if a == b || a != imageKey("/elsewhere/root/1", false) {
		t.Errorf("keys %s and %s", a, b)
	}
}

func TestExitCodesTravel(t *testing.T) {
	for _, code := range []int{0, 1, 137} {
		var wire bytes.Buffer
		out := &sender{enc: gob.NewEncoder(&wire)}
		for _, m := range []message{{Stdout: []byte("out")}, {Stderr: []byte("err")}, {Ended: true, Code: code}} {
			if err := out.send(m); err != nil {
				t.Fatal(err)
			}
		}
		var stdout, stderr bytes.Buffer
		got, err := receiveOutput(&wire, &stdout, &stderr)
		if got != code || err != nil || stdout.String() != "out" || stderr.String() != "err" {
			t.Errorf("exit code %d: got %d, %v, %q, %q", code, got, err, stdout.String(), stderr.String())
		}
	}
	if code, err := receiveOutput(strings.NewReader(""), nil, nil); err == nil {
		t.Errorf("a connection that ends: exit code %d", code)
	}
}

// What came together with the request must not get lost.
func TestBytesReadAheadAreForwarded(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	here, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.WriteString(here, "later")
		_ = here.(*net.TCPConn).CloseWrite()
	}()
	b := buffered{io.MultiReader(strings.NewReader("first, "), there), there.(*net.TCPConn)}
	var got bytes.Buffer
	if _, err := io.Copy(&got, b); err != nil || got.String() != "first, later" {
		t.Errorf("got %q, %v", got.String(), err)
	}
}

func TestDaemonsOfACluster(t *testing.T) {
	r := &record{Subnet: netip.MustParsePrefix("10.200.0.0/24"), Subnet6: netip.MustParsePrefix("fd70::/64"), Cluster: true, Sites: 2}
	want := []string{"polder", "serve", "--address", "10.200.0.103:7440", "--site", "site1", "--join", "T"}
	if got := r.daemonOf([]string{"polder", "serve"}, 3, "T"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	r.Cluster, r.Sites = false, 0
	if got := r.daemonOf([]string{"polder", "serve"}, 3, ""); !slices.Equal(got, want[:2]) {
		t.Errorf("alone: got %q", got)
	}
	if got := r.daemonOf(nil, 1, ""); got != nil {
		t.Errorf("without a daemon: got %q", got)
	}
}

func TestLabThatIsThereAlready(t *testing.T) {
	r := &record{Backend: Machines, Cluster: true, Sites: 2}
	for _, o := range []UpOptions{{}, {Backend: Machines}, {Sites: 2}, {Hosts: 5}} {
		if why := o.differs(r); why != "" {
			t.Errorf("%+v: %s", o, why)
		}
	}
	for _, o := range []UpOptions{{Backend: Namespaces}, {Alone: true}, {Sites: 3}} {
		if o.differs(r) == "" {
			t.Errorf("%+v is taken", o)
		}
	}
}
