package network

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// portFlags are the kernel's switches of a bridge's port (IFLA_BRPORT_…, linux/if_link.h), in the order they are sent.
type portFlags []portFlag

type portFlag struct {
	attr int
	on   bool
}

// silent learns nothing and floods nothing: only what a forwarding entry leads to goes out. more comes on top.
func silent(more ...portFlag) portFlags {
	return append(portFlags{
		{unix.IFLA_BRPORT_LEARNING, false},
		{unix.IFLA_BRPORT_UNICAST_FLOOD, false},
		{unix.IFLA_BRPORT_MCAST_FLOOD, false},
		{unix.IFLA_BRPORT_BCAST_FLOOD, false},
	}, more...)
}

// openPort passes everything.
func openPort() portFlags {
	return portFlags{
		{unix.IFLA_BRPORT_LEARNING, true},
		{unix.IFLA_BRPORT_UNICAST_FLOOD, true},
		{unix.IFLA_BRPORT_MCAST_FLOOD, true},
		{unix.IFLA_BRPORT_BCAST_FLOOD, true},
		{unix.IFLA_BRPORT_PROXYARP, false},
		{unix.IFLA_BRPORT_LOCKED, false},
	}
}

// shutPort passes nothing, as long as no forwarding entry leads to the port: what comes in has no entry and is dropped because the
// port is locked; nothing is flooded out, and proxy_arp keeps even what the host itself sends to all from being flooded.
//
// The port's state (disabled) would do the same, but the kernel makes a port forwarding again whenever its carrier comes, and
// some time after it was set up: just when a VE arrives.
func shutPort() portFlags {
	return silent(portFlag{unix.IFLA_BRPORT_PROXYARP, true}, portFlag{unix.IFLA_BRPORT_LOCKED, true})
}

// overlayPort passes only what a forwarding entry leads to, and its neighbours are answered for by the bridge.
func overlayPort() portFlags {
	return silent(portFlag{unix.IFLA_BRPORT_NEIGH_SUPPRESS, true})
}

// setPort sets flags of a port in one step.
func setPort(index int, flags portFlags) error {
	return portRequest(index, flags.attributes())
}

func (f portFlags) attributes() *nl.RtAttr {
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for _, flag := range f {
		value := byte(0)
		if flag.on {
			value = 1
		}
		port.AddRtAttr(flag.attr, []byte{value})
	}
	return port
}

// flushPort drops what the bridge has learned from a port.
func flushPort(index int) error {
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	port.AddRtAttr(unix.IFLA_BRPORT_FLUSH, nil)
	return portRequest(index, port)
}

func portRequest(index int, port *nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(port)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
