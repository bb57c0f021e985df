package container

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netConfig is what a VE has set up on its links, as the kernel tells it (rtnetlink(7)): said again, it does the same. CRIU would
// start a process of the tool "ip" for each of them, which takes longer than all else of the network.
type netConfig struct {
	Addresses [][]byte `json:"addresses"`
	Rules     [][]byte `json:"rules"`
	Routes    [][]byte `json:"routes"`
}

// netConfigLimit is how many messages of a kind go along.
const netConfigLimit = 50_000

// Where a message's fields are: struct ifaddrmsg, struct rtmsg.
const (
	addrFamily, addrFlags  = 0, 2
	routeTable, routeProto = 4, 5
	routeType, routeFlags  = 7, 8
	routeSize, addrSize    = 12, 8
	attributeHead          = 4
)

func netConfigOf(pid int) (c netConfig, err error) {
	err = inNetOf(pid, func(ask asker) error {
		var failed error
		c.Addresses, err = ask.dump(unix.RTM_GETADDR)
		failed = errors.Join(failed, err)
		c.Rules, err = ask.dump(unix.RTM_GETRULE)
		failed = errors.Join(failed, err)
		c.Routes, err = ask.dump(unix.RTM_GETROUTE)
		return errors.Join(failed, err)
	})
	return c, err
}

// set makes it so in the network namespace of pid, whose links are there.
func (c netConfig) set(pid int) error {
	return inNetOf(pid, func(ask asker) error {
		for _, m := range c.Addresses {
			if len(m) < addrSize {
				continue
			}
			if m[addrFamily] == unix.AF_INET6 {
				// It was tested for duplicates where it came from; until the test is over it could not be used.
				m[addrFlags] = m[addrFlags]&^unix.IFA_F_TENTATIVE | unix.IFA_F_NODAD
				m = withoutAttribute(m, addrSize, unix.IFA_FLAGS)
			}
			if err := ask.add(unix.RTM_NEWADDR, m); err != nil {
				return fmt.Errorf("address: %w", err)
			}
		}
		for _, m := range c.Rules {
			if len(m) < routeSize || len(withoutAttribute(m, routeSize, nl.FRA_PRIORITY)) == len(m) {
				continue // the very first, which every namespace has and whose place can't be said
			}
			if err := ask.add(unix.RTM_NEWRULE, m); err != nil {
				return fmt.Errorf("rule: %w", err)
			}
		}
		return c.setRoutes(ask)
	})
}

// setRoutes adds routes until none is left, or none can be added: a gateway must be reachable before its route.
func (c netConfig) setRoutes(ask asker) error {
	left := make([][]byte, 0, len(c.Routes))
	for _, m := range c.Routes {
		// What belongs to an address came with it; what was looked up is no setting.
		own := len(m) >= routeSize && m[routeProto] != unix.RTPROT_KERNEL && m[routeTable] != unix.RT_TABLE_LOCAL && m[routeType] != unix.RTN_LOCAL &&
			binary.NativeEndian.Uint32(m[routeFlags:])&unix.RTM_F_CLONED == 0
		if own {
			left = append(left, m)
		}
	}
	for len(left) > 0 {
		var again [][]byte
		var failed error
		for _, m := range left {
			binary.NativeEndian.PutUint32(m[routeFlags:], binary.NativeEndian.Uint32(m[routeFlags:])&unix.RTNH_F_ONLINK)
			if err := ask.add(unix.RTM_NEWROUTE, m); err != nil {
				failed = err
				again = append(again, m)
			}
		}
		if len(again) == len(left) {
			return fmt.Errorf("route: %w", failed)
		}
		left = again
	}
	return nil
}

// withoutAttribute drops an attribute of a message.
func withoutAttribute(m []byte, head int, kind uint16) []byte {
	kept := append([]byte{}, m[:head]...)
	for rest := m[head:]; len(rest) >= attributeHead; {
		size := int(binary.NativeEndian.Uint16(rest))
		whole := min((size+3)&^3, len(rest))
		if size < attributeHead {
			break
		}
		if binary.NativeEndian.Uint16(rest[2:]) != kind {
			kept = append(kept, rest[:whole]...)
		}
		rest = rest[whole:]
	}
	return kept
}

// asker speaks rtnetlink in one network namespace.
type asker struct{ sockets map[int]*nl.SocketHandle }

func inNetOf(pid int, f func(asker) error) error {
	there, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer there.Close()
	socket, err := nl.GetNetlinkSocketAt(there, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer socket.Close()
	return f(asker{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}})
}

func (a asker) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = a.sockets
	return req
}

// dump gives all of a kind; that a table changed meanwhile cannot be: its VE stands still.
func (a asker) dump(kind int) ([][]byte, error) {
	req := a.request(kind, unix.NLM_F_DUMP)
	req.AddData(&nl.RtMsg{}) // all families; as long as any of the kinds' headers
	all, err := req.Execute(unix.NETLINK_ROUTE, uint16(kind-2))
	if err == nil && len(all) > netConfigLimit {
		err = fmt.Errorf("more than %d", netConfigLimit)
	}
	return all, err
}

// add adds one; that it is there already is no error.
func (a asker) add(kind int, message []byte) error {
	req := a.request(kind, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddRawData(message)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
