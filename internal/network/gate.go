package network

import (
	"context"
	"errors"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

// Attach implements model.Plug.
func (f *Fabric) Attach(_ context.Context, nic model.NIC) error {
	bridge, err := f.bridge(nic.Network)
	if err == nil {
		nic.Shut = true
		_, err = attach(nic, bridge)
	}
	return wrap(err, "attach %q to network %q", nic.HostName, nic.Network)
}

// Gate implements model.Plug. An opened one takes the VE's MAC to itself, wherever it was before (SetOverlay and SetRemote
// respect that); a shut one leaves it to the overlay.
func (f *Fabric) Gate(_ context.Context, nic model.NIC, open bool) error {
	link, err := findLink(nic.HostName)
	switch {
	case err != nil:
	case link == nil:
		err = api.Errorf(api.NotFound, "it is not plugged in on this host")
	case link.Attrs().MasterIndex == 0:
		err = api.Errorf(api.NotFound, "it is not on the network's bridge")
	case open:
		err = openGate(nic, link)
	default:
		err = shutGate(nic, link)
	}
	return wrap(err, "gate of %q on network %q", nic.HostName, nic.Network)
}

// openGate lets packets pass at once: nobody needs to learn where the VE is.
func openGate(nic model.NIC, port netlink.Link) error {
	mac, err := hardwareAddr(nic.MAC)
	if err != nil {
		return err
	}
	if err := setPort(port.Attrs().Index, openPort()); err != nil {
		return err
	}
	return netlink.NeighSet(portEntry(mac, port.Attrs().Index))
}

// shutGate: what is learned in the last moment goes with the second step.
func shutGate(nic model.NIC, port netlink.Link) error {
	mac, err := hardwareAddr(nic.MAC)
	if err != nil {
		return err
	}
	if err := setPort(port.Attrs().Index, shutPort()); err != nil {
		return err
	}
	if err := flushPort(port.Attrs().Index); err != nil {
		return err
	}
	// The entry may be another port's by now: then it is not found here.
	if err := netlink.NeighDel(portEntry(mac, port.Attrs().Index)); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// portEntry is the bridge's forwarding entry for a MAC behind one of its ports. It is sticky: a packet that bears the MAC
// elsewhere does not draw it there.
func portEntry(mac net.HardwareAddr, port int) *netlink.Neigh {
	return &netlink.Neigh{
		Family: unix.AF_BRIDGE, LinkIndex: port, HardwareAddr: mac,
		Flags: netlink.NTF_MASTER | netlink.NTF_STICKY, State: netlink.NUD_NOARP,
	}
}

func hardwareAddr(text string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return nil, api.Errorf(api.Invalid, "mac %q: want six bytes", text)
	}
	return mac, nil
}
