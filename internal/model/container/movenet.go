package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"polder/internal/model"
)

// neighbour is an entry of a VE's neighbour table, which CRIU leaves out. Without it the VE's first packet asks for an address
// behind the shut gate, and the kernel repeats the question only after a second.
type neighbour struct {
	NIC     string     `json:"nic"`
	Address netip.Addr `json:"address"`
	MAC     string     `json:"mac"`
}

// neighboursLimit is how many of them go along.
const neighboursLimit = 1024

// neighboursOf reads those whose MAC is known.
func neighboursOf(pid int) ([]neighbour, error) {
	inside, err := handleIn(pid)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	links, err := inside.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	entries, err := inside.NeighList(0, 0)
	if err != nil {
		return nil, err
	}
	const known = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT
	var all []neighbour
	for _, entry := range entries {
		address, ok := netip.AddrFromSlice(entry.IP)
		if ok && entry.State&known != 0 && len(entry.HardwareAddr) == 6 && len(all) < neighboursLimit {
			all = append(all, neighbour{NIC: names[entry.LinkIndex], Address: address.Unmap(), MAC: entry.HardwareAddr.String()})
		}
	}
	return all, nil
}

// setNeighbours enters them where the first process of pid is. They are to be confirmed at their next use.
func setNeighbours(pid int, all []neighbour) error {
	inside, err := handleIn(pid)
	if err != nil {
		return err
	}
	defer inside.Close()
	for _, n := range all {
		link, err := inside.LinkByName(n.NIC)
		if err != nil {
			continue // one that is made by the VE, and gone
		}
		mac, err := net.ParseMAC(n.MAC)
		if err != nil {
			return err
		}
		entry := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: n.Address.AsSlice(), HardwareAddr: mac, State: netlink.NUD_STALE}
		if err := inside.NeighSet(entry); err != nil {
			return fmt.Errorf("neighbour %s: %w", n.Address, err)
		}
	}
	return nil
}

func handleIn(pid int) (*netlink.Handle, error) {
	there, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer there.Close()
	return netlink.NewHandleAt(there, unix.NETLINK_ROUTE)
}

// announce tells the VE's networks where it is now, in its name: by a gratuitous ARP request and an unsolicited neighbour
// advertisement for each of its addresses.
func announce(ve model.Spec, pid int) error {
	if len(ve.NICs) == 0 {
		return nil
	}
	there, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer there.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine
		result <- func() error {
			if err := netns.Set(there); err != nil {
				return err
			}
			var failed error
			for _, nic := range ve.NICs {
				failed = errors.Join(failed, announceNIC(nic))
			}
			return failed
		}()
	}()
	return <-result
}

func announceNIC(nic model.NIC) error {
	mac, err := net.ParseMAC(nic.MAC)
	if err != nil {
		return err
	}
	inside, err := net.InterfaceByName(nic.Name)
	if err != nil {
		return nil // the VE has renamed or removed it
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, p := range nic.Addresses {
		var packet []byte
		if p.Addr().Is6() {
			packet = neighbourAdvertisement(mac, p.Addr())
		} else {
			packet = gratuitousARP(mac, p.Addr())
		}
		// A link that is down says nothing to anybody.
		_ = unix.Sendto(fd, packet, 0, &unix.SockaddrLinklayer{Ifindex: inside.Index, Halen: 6})
	}
	return nil
}

// gratuitousARP is an ARP request (RFC 826) of an address for itself, with its Ethernet header.
func gratuitousARP(mac net.HardwareAddr, address netip.Addr) []byte {
	ip := address.As4()
	p := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	p = append(p, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	p = append(append(p, mac...), ip[:]...)
	return append(append(p, 0, 0, 0, 0, 0, 0), ip[:]...)
}

// neighbourAdvertisement is an unsolicited one (RFC 4861, 7.2.6) to all nodes, with its Ethernet and IPv6 headers.
func neighbourAdvertisement(mac net.HardwareAddr, address netip.Addr) []byte {
	ip, all := address.As16(), netip.IPv6LinkLocalAllNodes().As16()
	body := []byte{136, 0, 0, 0, 0x20, 0, 0, 0} // override
	body = append(append(body, ip[:]...), append([]byte{2, 1}, mac...)...)
	// The checksum runs over a pseudo header: addresses, length, next header (RFC 8200, 8.1).
	pseudo := append(append(append([]byte{}, ip[:]...), all[:]...), 0, 0, 0, byte(len(body)), 0, 0, 0, 58)
	binary.BigEndian.PutUint16(body[2:], checksum(append(pseudo, body...)))
	p := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	p = append(p, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), 58, 255)
	return append(append(append(p, ip[:]...), all[:]...), body...)
}

// checksum is the Internet's (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
