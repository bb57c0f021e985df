package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/user"
	"slices"
	"strings"
)

// Ports of the services. portDNSElse is where DNS listens when another resolver of this host holds port 53 on every
// address; VEs' questions are redirected to it.
const (
	portDNS     = 53
	portDNSElse = 10053
)

// serialLabel is a name in the network's domain that no VE can have. Its address tells which leases dnsmasq has read.
const serialLabel = "_leases"

// files that dnsmasq reads and writes, by absolute path.
type files struct{ conf, pid, hosts, dhcp string }

func filesIn(dir string) files {
	return files{conf: dir + "/dnsmasq.conf", pid: dir + "/dnsmasq.pid", hosts: dir + "/hosts", dhcp: dir + "/dhcp-hosts"}
}

// dnsmasqConf is the configuration of the network's dnsmasq. It reads nothing of the host's but /etc/resolv.conf, keeps
// nothing on disk, and listens on the bridge only. DHCP answers known MACs only, with their one address.
func dnsmasqConf(cfg Config, f files, account string, dnsPort int) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# network %s; made by polder, overwritten at its start", cfg.Name)
	line("user=%s\npid-file=%s", account, f.pid)
	line("interface=%s\nexcept-interface=lo\nbind-interfaces\nport=%d", cfg.Bridge, dnsPort)

	line("no-hosts\naddn-hosts=%s\nresolv-file=/etc/resolv.conf", f.hosts)
	line("domain=%s\nlocal=/%s/\ndomain-needed\ncache-size=1000", cfg.Domain, cfg.Domain)
	line("rev-server=%s\nrev-server=%s", cfg.IPv4.Masked(), cfg.IPv6.Masked())

	line("dhcp-hostsfile=%s\nleasefile-ro\ndhcp-authoritative\ndhcp-rapid-commit", f.dhcp)
	line("dhcp-lease-max=%d", 4<<(32-minBits4)) // enough for every VE twice
	line("quiet-dhcp\nquiet-dhcp6\nquiet-ra")
	// A lease is found again by MAC alone, so that release can drop it; names come from the hosts file alone.
	line("dhcp-ignore-clid\ndhcp-ignore-names")
	line("dhcp-range=%s,static,%s,infinite", cfg.IPv4.Masked().Addr(), net.IP(net.CIDRMask(cfg.IPv4.Bits(), 32)))
	line("dhcp-option=option:domain-search,%s", cfg.Domain)
	line("dhcp-option=option:mtu,%d", cfg.MTU)
	// By both ways, DHCPv6 and autoconfiguration, a VE gets the same address: some systems have only the latter.
	// Without the files on disk in which dnsmasq would keep it, the server's DHCPv6 identity must come from here.
	line("dhcp-range=%s,static,slaac,%d,infinite\nenable-ra", cfg.IPv6.Masked().Addr(), cfg.IPv6.Bits())
	line("dhcp-duid=%d,%s", duidEnterprise, strings.ReplaceAll(cfg.bridgeMAC().String(), ":", ""))
	line("dhcp-option=option6:dns-server,[%s]", cfg.IPv6.Addr())
	line("dhcp-option=option6:domain-search,%s", cfg.Domain)
	return b.String()
}

// duidEnterprise is the enterprise number of the server's DUID-EN: the one set aside for documentation (RFC 5612), as
// Polder has none of its own.
const duidEnterprise = 32473

// dnsmasqAccount is who dnsmasq runs as once it has its sockets: Debian's own user for it, else nobody.
func dnsmasqAccount() string {
	if _, err := user.Lookup("dnsmasq"); err == nil {
		return "dnsmasq"
	}
	return "nobody"
}

// hostsFile is the names in DNS, and as its last line the serial.
func hostsFile(cfg Config, leases []Lease) []byte {
	var b strings.Builder
	for _, l := range sorted(leases) {
		for _, addr := range []netip.Addr{l.IPv4.Addr(), l.IPv6.Addr()} {
			// The first name is the one that the address leads back to.
			b.WriteString(addr.String() + " " + l.Name + "." + cfg.Domain + " " + l.Name + "\n")
		}
	}
	b.WriteString(serial(b.String()).String() + " " + serialName(cfg) + "\n")
	return []byte(b.String())
}

// dhcpFile is the leases for DHCP. IPv4 addresses are given for ever, and released when the VE goes. A DHCPv6 lease can
// only be released by who has it: it ends after a day without a renewal, so that dnsmasq does not fill up.
func dhcpFile(leases []Lease) []byte {
	var b strings.Builder
	for _, l := range sorted(leases) {
		b.WriteString(l.MAC + "," + l.IPv4.Addr().String() + ",infinite\n")
		b.WriteString(l.MAC + ",[" + l.IPv6.Addr().String() + "],1d\n")
	}
	return []byte(b.String())
}

// sorted makes the files the same for the same leases.
func sorted(leases []Lease) []Lease {
	return slices.SortedFunc(slices.Values(leases), func(a, b Lease) int { return strings.Compare(a.Name+" "+a.MAC, b.Name+" "+b.MAC) })
}

func serialName(cfg Config) string { return serialLabel + "." + cfg.Domain }

// serial stands for the content of the hosts file: an address in the discard-only block (RFC 6666), where it can do no harm.
func serial(hosts string) netip.Addr {
	a := [16]byte{0: 0x01}
	copy(a[8:], digest("leases", hosts)[:8])
	return netip.AddrFrom16(a)
}

// leased reads back a dhcpFile: MAC to IPv4 address. Lines it can't read are left out.
func leased(dhcp []byte) map[string]netip.Addr {
	found := map[string]netip.Addr{}
	for line := range strings.Lines(string(dhcp)) {
		fields := strings.Split(line, ",")
		if len(fields) < 2 {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil && addr.Is4() {
			found[fields[0]] = addr
		}
	}
	return found
}

// releaseMessage is what a client sends to give up its address (RFC 2131, section 4.4.6).
func releaseMessage(mac []byte, addr, server netip.Addr) []byte {
	const (
		clientAddr, hardwareAddr, options = 12, 28, 236
		messageType, serverID, release    = 53, 54, 7
	)
	m := make([]byte, options, options+16)
	m[0], m[1], m[2] = 1, 1, byte(len(mac)) // request, ethernet
	copy(m[clientAddr:], addr.AsSlice())
	copy(m[hardwareAddr:], mac)
	m = binary.BigEndian.AppendUint32(m, 0x63825363) // magic cookie
	m = append(m, messageType, 1, release, serverID, 4)
	m = append(m, server.AsSlice()...)
	return append(m, 255)
}
