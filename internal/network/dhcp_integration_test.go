//go:build integration

package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bare is a VE that is plugged in but has no addresses: it must ask for them.
func (w *world) bare(name string) ve {
	w.Helper()
	v := w.container(name)
	v.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
	return v
}

// socket opens a UDP socket inside the VE that is bound to its eth0.
func (v ve) socket(network, address string) net.PacketConn {
	v.w.Helper()
	var conn net.PacketConn
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		here, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = netns.Set(here) }()
		ns, err := netns.GetFromPid(v.pid)
		if err == nil {
			err = netns.Set(ns)
		}
		if err == nil {
			lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
				ctlErr := raw.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
					if err == nil {
						err = unix.BindToDevice(int(fd), "eth0")
					}
				})
				if ctlErr != nil {
					return ctlErr
				}
				return err
			}}
			conn, err = lc.ListenPacket(context.Background(), network, address)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		v.w.Fatal(err)
	}
	v.w.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask4 sends a DHCPv4 message and returns the answer's address and options; ok is false when none comes in time.
func ask4(t *testing.T, conn net.PacketConn, mac net.HardwareAddr, wait time.Duration, options ...byte) (addr netip.Addr, answer map[byte]string, ok bool) {
	t.Helper()
	m := releaseMessage(mac, netip.IPv4Unspecified(), netip.IPv4Unspecified())[:240]
	copy(m[4:], mac[2:]) // transaction
	m[10] = 0x80         // answer by broadcast
	m = append(append(m, options...), 255)
	if _, err := conn.WriteTo(m, &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	for {
		buf := make([]byte, 1500)
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return addr, nil, false
		}
		if n < 241 || !slices.Equal(buf[4:8], m[4:8]) || buf[0] != 2 {
			continue
		}
		answer = map[byte]string{}
		for o := buf[240:n]; len(o) > 2 && o[0] != 255; o = o[2+o[1]:] {
			answer[o[0]] = string(o[2 : 2+o[1]])
		}
		return netip.AddrFrom4([4]byte(buf[16:20])), answer, true
	}
}

// request4 gets an address as a client does.
func request4(t *testing.T, conn net.PacketConn, mac net.HardwareAddr) (netip.Addr, map[byte]string) {
	t.Helper()
	offered, offer, ok := ask4(t, conn, mac, 5*time.Second, 53, 1, 1)
	if !ok {
		t.Fatalf("no offer for %s", mac)
	}
	request := append([]byte{53, 1, 3, 55, 6, 1, 3, 6, 12, 15, 26, 50, 4}, offered.AsSlice()...)
	request = append(append(request, 54, 4), offer[54]...)
	addr, ack, ok := ask4(t, conn, mac, 5*time.Second, request...)
	if !ok || ack[53] != "\x05" {
		t.Fatalf("no ack for %s: %v", mac, ack)
	}
	return addr, ack
}

func TestDHCPv4(t *testing.T) {
	w := newWorld(t)
	w.cfg.MTU = 1400
	w.up()
	v := w.bare("a")
	a := w.leases[0]
	conn := v.socket("udp4", "0.0.0.0:68")
	gateway := string(w.cfg.IPv4.Addr().AsSlice())
	addr, ack := request4(t, conn, parseMAC(t, a.MAC))
	if addr != a.IPv4.Addr() {
		t.Errorf("got %s, want %s", addr, a.IPv4.Addr())
	}
	for option, want := range map[byte]string{1: "\xff\xff\xff\x00", 3: gateway, 6: gateway, 12: "a", 15: w.cfg.Domain, 26: "\x05\x78", 51: "\xff\xff\xff\xff"} {
		if ack[option] != want {
			t.Errorf("option %d: got %q, want %q", option, ack[option], want)
		}
	}
	stranger := parseMAC(t, "02:00:00:00:00:99")
	if addr, _, ok := ask4(t, conn, stranger, 200*time.Millisecond, 53, 1, 1); ok {
		t.Errorf("a MAC without a lease was offered %s", addr)
	}

	// The VE goes, another gets its address: nothing of the old lease is in the way, and nothing answers for the old name.
	b := a
	b.Name, b.MAC = "b", stranger.String()
	b.IPv6 = netip.PrefixFrom(eui64(w.cfg.IPv6, stranger), 64)
	w.leases = []Lease{b}
	w.publish()
	if addr, ack := request4(t, conn, stranger); addr != a.IPv4.Addr() || ack[12] != "b" {
		t.Errorf("got %s, %q", addr, ack[12])
	}
	if got := w.ask("a.polder.internal.", 1); len(got) != 0 {
		t.Errorf("the old name still leads to %v", got)
	}
	if got := w.ask("b.polder.internal.", 1); !slices.Equal(got, []string{addr.String()}) {
		t.Errorf("the new name leads to %v", got)
	}
	// And dnsmasq, started again without any memory, gives a client what it has.
	kill(t, w.pid())
	w.up()
	if addr, _ := request4(t, conn, stranger); addr != a.IPv4.Addr() {
		t.Errorf("got %s", addr)
	}
}

// A client that others wrote gets the same.
func TestDHCPWithBusybox(t *testing.T) {
	w := newWorld(t)
	w.up()
	v := w.bare("a")
	out := v.run("busybox", "udhcpc", "-f", "-n", "-q", "-t", "3", "-i", "eth0", "-s", "/bin/true")
	wantIn(t, out, "lease of "+w.leases[0].IPv4.Addr().String()+" obtained from "+w.cfg.IPv4.Addr().String())
}

func TestDHCPv6AndRouterAdvertisements(t *testing.T) {
	w := newWorld(t)
	w.up()
	v := w.bare("a")
	l := w.leases[0]
	mac := parseMAC(t, l.MAC)
	began := time.Now()
	conn := v.socket("udp6", "[::]:546")
	got := request6(t, conn, mac)
	t.Logf("dhcpv6 took %v", time.Since(began))
	if got != l.IPv6.Addr() {
		t.Errorf("got %s, want %s", got, l.IPv6.Addr())
	}
	// The kernel's own client: routes by router advertisement.
	v.run("ip", "-6", "route", "flush", "default")
	v.run("sh", "-c", "mount -o remount,rw /proc/sys 2>/dev/null; mount -t proc proc /proc; echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra; ip link set eth0 down; ip link set eth0 up")
	eventually(t, "default route by router advertisement", func() bool {
		out, _ := v.exec("ip", "-6", "route", "show", "default")
		return strings.Contains(out, "via fe80::1") && strings.Contains(out, "proto ra")
	})
	// Autoconfiguration leads to the address that DHCPv6 gives.
	wantIn(t, v.run("ip", "-6", "addr", "show", "dev", "eth0"), l.IPv6.String())
}

// request6 gets an address by the two-message exchange with rapid commit (RFC 8415), as a client whose DUID is its MAC.
func request6(t *testing.T, conn net.PacketConn, mac net.HardwareAddr) netip.Addr {
	t.Helper()
	option := func(code uint16, data ...byte) []byte {
		o := binary.BigEndian.AppendUint16(nil, code)
		return append(binary.BigEndian.AppendUint16(o, uint16(len(data))), data...)
	}
	m := []byte{1, 1, 2, 3} // solicit
	m = append(m, option(1, append([]byte{0, 3, 0, 1}, mac...)...)...)
	m = append(m, option(3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)...)
	m = append(m, option(14)...)
	m = append(m, option(8, 0, 0)...)
	if _, err := conn.WriteTo(m, &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547, Zone: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	n, _, err := conn.ReadFrom(buf)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	if buf[0] != 7 {
		t.Fatalf("message type %d: want a reply", buf[0])
	}
	for o := buf[4:n]; len(o) >= 4; {
		code, length := binary.BigEndian.Uint16(o), binary.BigEndian.Uint16(o[2:])
		if code == 3 && length >= 12+4+24 { // IA_NA with an IAADDR
			return netip.AddrFrom16([16]byte(o[4+12+4 : 4+12+4+16]))
		}
		o = o[4+length:]
	}
	t.Fatalf("no address in %x", buf[:n])
	return netip.Addr{}
}

// The host's resolver is asked for all other names, also when it is a stub on a loopback address.
func TestForwardsToTheHostsResolver(t *testing.T) {
	w := newWorld(t)
	stub, err := net.ListenPacket("udp", "127.0.0.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stub.Close() }()
	go answerAll(stub, netip.MustParseAddr("192.0.2.53"))
	resolv := w.dir + "-resolv.conf"
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "--make-rprivate", "/")
	run(t, "mount", "--bind", resolv, "/etc/resolv.conf")
	defer run(t, "umount", "/etc/resolv.conf")
	w.up()
	v := w.container("a")
	wantIn(t, v.run("getent", "ahostsv4", "www.example.org"), "192.0.2.53")
	if out, err := v.exec("getent", "ahostsv4", "nobody"); err == nil {
		t.Errorf("a VE's name was asked for outside: %s", out)
	}
	if out, err := v.exec("getent", "hosts", fmt.Sprint(w.cfg.IPv4.Addr().Next())); err == nil {
		t.Errorf("a VE's address was asked for outside: %s", out)
	}
}

// answerAll is a resolver for which every name has one address.
func answerAll(conn net.PacketConn, addr netip.Addr) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var question dns.Msg
		if question.Unpack(buf[:n]) != nil || len(question.Question) != 1 {
			continue
		}
		reply := new(dns.Msg).SetReply(&question)
		if question.Question[0].Qtype == dns.TypeA {
			reply.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: question.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: addr.AsSlice(),
			}}
		}
		if text, err := reply.Pack(); err == nil {
			_, _ = conn.WriteTo(text, from)
		}
	}
}
