//go:build integration

package network

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// ear hears all frames that come in at a link.
type ear struct {
	*testing.T
	socket int
}

// listen listens in the namespace of a process; 0: this one.
func listen(t *testing.T, pid int, link string) ear {
	t.Helper()
	socket := -1
	done := make(chan error)
	go func() {
		done <- func() error {
			if pid == 0 {
				pid = os.Getpid()
			}
			ns, err := netns.GetFromPid(pid)
			if err != nil {
				return err
			}
			defer func() { _ = ns.Close() }()
			defer enter(ns)()
			port, err := net.InterfaceByName(link)
			if err != nil {
				return err
			}
			const all = 0x0300 // ETH_P_ALL in network order
			if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
				return err
			}
			return unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: all, Ifindex: port.Index})
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(socket) })
	return ear{t, socket}
}

// heard counts the frames from these MACs since the last time.
func (e ear) heard(from ...string) (n int) {
	e.Helper()
	frame := make([]byte, 2048)
	for {
		size, sender, err := unix.Recvfrom(e.socket, frame, 0)
		if err == unix.EAGAIN {
			return n
		}
		if err != nil && err != unix.ENETDOWN {
			e.Fatal(err)
		}
		ll, ok := sender.(*unix.SockaddrLinklayer)
		if size >= 14 && ok && ll.Pkttype != unix.PACKET_OUTGOING && slices.Contains(from, net.HardwareAddr(frame[6:12]).String()) {
			n++
		}
	}
}

// passing says how many packets pass into the VE, and out of it, of those that a neighbour, the host and the VE send.
func (w *world) passing(v, neighbour ve, of, beside Lease) (in, out int) {
	w.Helper()
	inside, outside, bridge := listen(w.T, v.pid, "eth0"), listen(w.T, neighbour.pid, "eth0"), listen(w.T, 0, w.cfg.Bridge)
	noise := func(v ve, l Lease) {
		// To all: questions for a MAC; to one: a known MAC; multicast.
		_, _ = v.exec("sh", "-c", fmt.Sprintf(`ip neigh flush all; ping -4 -c1 -W0.05 %[1]s; ping -6 -c1 -W0.05 %[2]s
			ip neigh replace %[1]s lladdr %[3]s dev eth0; ping -c2 -i0.01 -W0.05 %[1]s; ping -6 -c1 -W0.05 ff02::1%%eth0; ip neigh flush all`,
			l.IPv4.Addr(), l.IPv6.Addr(), l.MAC))
	}
	noise(neighbour, of)
	noise(v, beside)
	_, _ = v.exec("ping", "-c1", "-W0.05", w.cfg.IPv4.Addr().String())
	_ = w.ping(of)
	return inside.heard(beside.MAC, w.cfg.bridgeMAC().String()), outside.heard(of.MAC) + bridge.heard(of.MAC)
}

// ping asks the VE from the host, which has to find out its MAC.
func (w *world) ping(l Lease) bool {
	_, _ = execOut("ip", "neigh", "flush", "dev", w.cfg.Bridge)
	_, four := execOut("ping", "-4", "-c1", "-W0.1", l.IPv4.Addr().String())
	_, six := execOut("ping", "-6", "-c1", "-W0.1", l.IPv6.Addr().String())
	return four == nil && six == nil
}

func TestGate(t *testing.T) {
	w := newWorld(t)
	w.up()
	v, neighbour := w.container("a"), w.container("b")
	a, b := w.leases[0], w.leases[1]
	nic := w.nic(a)
	for what, flap := range map[string]func(){
		"left alone": func() {},
		"set down and up": func() {
			run(t, "ip", "link", "set", nic.HostName, "down")
			run(t, "ip", "link", "set", nic.HostName, "up")
		},
		"the VE's carrier comes and goes": func() {
			v.run("sh", "-c", "ip link set eth0 down; sleep 0.1; ip link set eth0 up; sleep 0.2; ip route add default via "+w.cfg.IPv4.Addr().String())
		},
		"promiscuous": func() { run(t, "ip", "link", "set", nic.HostName, "promisc", "on", "allmulticast", "on") },
		"the bridge set down and up": func() {
			run(t, "ip", "link", "set", "polder0", "down")
			run(t, "ip", "link", "set", "polder0", "up")
			w.up()
		},
		"a neighbour comes": func() { w.container("c" + fmt.Sprint(time.Now().UnixNano()%1000)) },
	} {
		t.Run(what, func(t *testing.T) {
			w.gate(nic, true)
			if in, out := w.passing(v, neighbour, a, b); in == 0 || out == 0 {
				t.Fatalf("open: %d packets in, %d out", in, out)
			}
			w.gate(nic, false)
			flap()
			if in, out := w.passing(v, neighbour, a, b); in != 0 || out != 0 {
				t.Errorf("shut: %d packets in, %d out", in, out)
			}
			if w.ping(a) {
				t.Error("shut: answers the host")
			}
			wantIn(t, v.run("ip", "-o", "link", "show", "eth0"), "LOWER_UP")
			w.gate(nic, true)
			v.run("ip", "addr", "replace", a.IPv6.String(), "dev", "eth0", "nodad")
			if !w.ping(a) {
				t.Error("open again: does not answer the host")
			}
			if in, out := w.passing(v, neighbour, a, b); in == 0 || out == 0 {
				t.Errorf("open again: %d packets in, %d out", in, out)
			}
		})
	}
}

func (w *world) gate(nic model.NIC, open bool) {
	w.Helper()
	began := time.Now()
	if err := w.fabric.Gate(w.Context(), nic, open); err != nil {
		w.Fatal(err)
	}
	w.Logf("gate, open %v: %v", open, time.Since(began))
}

func TestGateNeedsAPort(t *testing.T) {
	w := newWorld(t)
	w.up()
	nic := w.nic(w.lease("a"))
	if err := w.fabric.Gate(t.Context(), nic, true); api.KindOf(err) != api.NotFound {
		t.Errorf("no link: got %v", err)
	}
	if err := w.fabric.Tap(t.Context(), nic, 0); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "set", nic.HostName, "nomaster")
	if err := w.fabric.Gate(t.Context(), nic, true); api.KindOf(err) != api.NotFound {
		t.Errorf("not on the bridge: got %v", err)
	}
	if err := w.fabric.Unplug(t.Context(), nic); err != nil {
		t.Fatal(err)
	}
}

// What somebody else made, such as criu, comes up shut, whether it was up before or not.
func TestAttach(t *testing.T) {
	w := newWorld(t)
	w.up()
	neighbour := w.container("b")
	for what, state := range map[string]string{"down": "down", "up": "up"} {
		t.Run(what, func(t *testing.T) {
			a, v := w.lease("a"+what), w.process()
			nic := w.nic(a)
			v.run("ip", "link", "add", "name", "eth0", "address", a.MAC, "type", "veth", "peer", "name", nic.HostName, "netns", fmt.Sprint(os.Getpid()))
			v.run("ip", "link", "set", "eth0", "mtu", fmt.Sprint(nic.MTU), "up")
			v.run("ip", "addr", "add", a.IPv4.String(), "dev", "eth0")
			v.run("ip", "addr", "add", a.IPv6.String(), "dev", "eth0", "nodad")
			run(t, "ip", "link", "set", nic.HostName, state)
			for range 2 {
				if err := w.fabric.Attach(t.Context(), nic); err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(1100 * time.Millisecond) // in which the kernel takes note of the carrier
			if in, out := w.passing(v, neighbour, a, w.leases[0]); in != 0 || out != 0 {
				t.Errorf("attached: %d packets in, %d out", in, out)
			}
			wantIn(t, v.run("ip", "-o", "link", "show", "eth0"), "LOWER_UP")
			w.gate(nic, true)
			out := neighbour.run("ping", "-c1", "-W0.7", a.IPv4.Addr().String())
			wantIn(t, out, "1 received")
			if err := w.fabric.Unplug(t.Context(), nic); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A VM's program opens the tap after it was set up shut, and may close it and open it again: that is its carrier.
func TestGateOfATap(t *testing.T) {
	w := newWorld(t)
	w.up()
	neighbour := w.container("b")
	a := w.lease("a")
	nic := w.nic(a)
	nic.Shut = true
	if err := w.fabric.Tap(t.Context(), nic, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.fabric.Unplug(t.Context(), nic) }()
	for range 2 {
		tap := openTapHere(t, nic.HostName)
		<-time.After(1100 * time.Millisecond)
		noise := func() {
			_, _ = neighbour.exec("ping", "-c2", "-i0.01", "-W0.05", a.IPv4.Addr().String())
			_ = w.ping(a)
		}
		noise()
		if n := drainTap(t, tap); n != 0 {
			t.Errorf("shut: %d packets came in", n)
		}
		before := run(t, "ip", "-s", "link", "show", "polder0")
		arp := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, arpRequest(t, a, w.cfg)...)
		if _, err := unix.Write(tap, append(make([]byte, 10), arp...)); err != nil {
			t.Fatal(err)
		}
		if n := drainTap(t, tap); n != 0 {
			t.Errorf("shut: %d answers (before: %s)", n, before)
		}
		w.gate(nic, true)
		if _, err := unix.Write(tap, append(make([]byte, 10), arp...)); err != nil {
			t.Fatal(err)
		}
		if n := drainTap(t, tap); n == 0 {
			t.Error("open: no answer from the gateway")
		}
		noise()
		if n := drainTap(t, tap); n == 0 {
			t.Error("open: nothing comes in")
		}
		w.gate(nic, false)
		_ = unix.Close(tap)
	}
}

// arpRequest asks for the gateway; the receiver's address is left to the caller.
func arpRequest(t *testing.T, l Lease, cfg Config) []byte {
	t.Helper()
	sender := parseMAC(t, l.MAC)
	b := append([]byte{}, sender...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, sender...), l.IPv4.Addr().AsSlice()...)
	b = append(append(b, make([]byte, 6)...), cfg.IPv4.Addr().AsSlice()...)
	return append(b, make([]byte, 18)...)
}

func openTapHere(t *testing.T, name string) int {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	return fd
}

// drainTap counts the packets that wait in the tap.
func drainTap(t *testing.T, fd int) (n int) {
	t.Helper()
	<-time.After(20 * time.Millisecond)
	for {
		_, err := unix.Read(fd, make([]byte, 2048))
		if err == unix.EAGAIN {
			return n
		}
		if err != nil {
			t.Fatal(strings.TrimSpace(err.Error()))
		}
		n++
	}
}
