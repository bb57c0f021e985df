//go:build integration

package network

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"polder/api"
)

func TestVethIsConfigured(t *testing.T) {
	w := newWorld(t)
	w.cfg.MTU = 1450
	w.up()
	v := w.container("a")
	l := w.leases[0]
	mac := parseMAC(t, l.MAC)
	wantIn(t, v.run("ip", "-o", "link", "show", "eth0"), fmt.Sprintf("%d: eth0@", innerIndex(mac)), l.MAC, "mtu 1450", "LOWER_UP")
	addresses := v.run("ip", "-o", "addr", "show", "eth0")
	wantIn(t, addresses, l.IPv4.String(), l.IPv6.String(), eui64(gatewayLinkLocal, mac).String()+"/64")
	if strings.Contains(addresses, "tentative") || strings.Count(addresses, "fe80:") != 1 {
		t.Errorf("addresses: %s", addresses)
	}
	wantIn(t, v.run("ip", "route"), "default via "+w.cfg.IPv4.Addr().String())
	wantIn(t, v.run("ip", "-6", "route"), "default via "+w.cfg.IPv6.Addr().String())
	wantIn(t, v.run("ip", "-o", "link", "show", "lo"), "UP")
	host := run(t, "ip", "-d", "-o", "link", "show", HostName("uuid of a", 0))
	wantIn(t, host, "master polder0", "mtu 1450", "hairpin off", "isolated off", "state UP")
	if out := run(t, "ip", "-6", "-o", "addr", "show", HostName("uuid of a", 0)); out != "" {
		t.Errorf("the port has addresses: %s", out)
	}
}

func TestVethFinishesWhatWasCutOff(t *testing.T) {
	w := newWorld(t)
	w.up()
	l := w.lease("a")
	name := HostName("uuid of a", 0)
	for what, remains := range map[string]func(v ve){
		"nothing": func(ve) {},
		"all of it": func(v ve) {
			if err := w.fabric.Veth(t.Context(), w.nic(l), v.pid); err != nil {
				t.Fatal(err)
			}
		},
		"a pair that is not set up": func(v ve) {
			v.run("ip", "link", "add", "name", "eth0", "index", fmt.Sprint(innerIndex(parseMAC(t, l.MAC))), "type", "veth", "peer", "name", name, "netns", fmt.Sprint(os.Getpid()))
		},
		"a pair of an earlier process": func(ve) {
			old := w.process()
			if err := w.fabric.Veth(t.Context(), w.nic(l), old.pid); err != nil {
				t.Fatal(err)
			}
		},
		"only the name of the host's end": func(ve) { run(t, "ip", "link", "add", name, "type", "bridge") },
	} {
		t.Run(what, func(t *testing.T) {
			v := w.process()
			remains(v)
			if err := w.fabric.Veth(t.Context(), w.nic(l), v.pid); err != nil {
				t.Fatal(err)
			}
			v.run("ping", "-c1", "-W2", w.cfg.IPv4.Addr().String())
			v.run("ping", "-c1", "-W2", w.cfg.IPv6.Addr().String())
			if err := w.fabric.Unplug(t.Context(), w.nic(l)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestVethRefuses(t *testing.T) {
	w := newWorld(t)
	l := testLeases(t, "a")[0]
	if err := w.fabric.Veth(t.Context(), w.nic(l), os.Getpid()); api.KindOf(err) != api.Precondition {
		t.Errorf("network down: got %v", err)
	}
	w.up()
	if err := w.fabric.Veth(t.Context(), w.nic(l), os.Getpid()); api.KindOf(err) != api.Precondition || !strings.Contains(err.Error(), "host's network namespace") {
		t.Errorf("host's own namespace: got %v", err)
	}
	if err := w.fabric.Veth(t.Context(), w.nic(l), 1<<22); api.KindOf(err) != api.Precondition {
		t.Errorf("no such process: got %v", err)
	}
	v := w.process()
	v.run("ip", "link", "add", "eth0", "type", "bridge")
	if err := w.fabric.Veth(t.Context(), w.nic(l), v.pid); err == nil {
		t.Error("eth0 is something else's: got no error")
	}
	if out := run(t, "ip", "-o", "link", "show", "type", "veth"); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

func TestTapIsTheUsers(t *testing.T) {
	w := newWorld(t)
	w.up()
	const uid = 123456
	nic := w.nic(testLeases(t, "vm")[0])
	for range 2 {
		if err := w.fabric.Tap(t.Context(), nic, uid); err != nil {
			t.Fatal(err)
		}
	}
	wantIn(t, run(t, "ip", "-d", "-o", "link", "show", nic.HostName), "master polder0", "tun type tap", "vnet_hdr on", "persist on", "user 123456")
	const device = "/dev/net/tun"
	if err := openTap(uid, device, nic.HostName); err != nil {
		t.Errorf("its user: %v", err)
	}
	if err := openTap(uid+1, device, nic.HostName); err == nil {
		t.Error("another user can open it")
	}
	if err := w.fabric.Unplug(t.Context(), nic); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "link", "show", nic.HostName).CombinedOutput(); err == nil {
		t.Errorf("still there: %s", out)
	}
}

// openTap opens a tap device in a process of a user without rights (see TestMain).
func openTap(uid uint32, device, name string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{tapDevice + "=" + device, tapName + "=" + name}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

const (
	tapDevice = "POLDER_NETWORK_TEST_TAP_DEVICE"
	tapName   = "POLDER_NETWORK_TEST_TAP_NAME"
)

// tapOpener is what runs in that process.
func tapOpener() error {
	fd, err := unix.Open(os.Getenv(tapDevice), unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	req, err := unix.NewIfreq(os.Getenv(tapName))
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

// The first packet after Veth gets through: one that is lost to an end without a carrier costs the VE a second.
func TestFirstPacketIsNotLost(t *testing.T) {
	w := newWorld(t)
	w.up()
	l := w.lease("a")
	for range 20 {
		v := w.process()
		if err := w.fabric.Veth(t.Context(), w.nic(l), v.pid); err != nil {
			t.Fatal(err)
		}
		v.run("ping", "-c1", "-W0.7", w.cfg.IPv4.Addr().String())
		v.run("ping", "-6", "-c1", "-W0.7", w.cfg.IPv6.Addr().String())
		if err := w.fabric.Unplug(t.Context(), w.nic(l)); err != nil {
			t.Fatal(err)
		}
	}
}
