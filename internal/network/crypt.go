package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"polder/api"
	"polder/internal/command"
)

// Encrypted, hosts send each other VXLAN through a WireGuard device. There every host has an address that follows from its public key,
// so nothing needs to be agreed upon but the keys, and VXLAN packets are sent to those addresses instead of the hosts' own.

// Crypt is how what hosts send each other is encrypted. Keys are those of WireGuard, in base64.
type Crypt struct {
	Key   string                // this host's private key
	Peers map[netip.Addr]string // the other hosts' public keys, by their Underlay.Self
}

// cryptPort is where hosts listen for each other's encrypted packets.
const cryptPort = 7443

// cryptKeepalive makes hosts shake hands as soon as both are there, not when the first packet of a VE is to be sent: by then one side
// may just have tried in vain, and it tries again after five seconds only.
const cryptKeepalive = 25 * time.Second

// overheadCrypt is what WireGuard adds to a packet: outer IPv6, UDP, its own.
const overheadCrypt = 40 + 8 + 32

func (c Config) cryptLink() string { return c.Bridge + "-w" }

// cryptPrefix holds the addresses inside of the encryption (a ULA prefix drawn from the network's).
func (c Config) cryptPrefix() netip.Prefix {
	addr := [16]byte{0: 0xfd}
	copy(addr[1:8], digest("wireguard", c.IPv6.String()))
	return netip.PrefixFrom(netip.AddrFrom16(addr), bits6)
}

// cryptAddr is a host's address inside.
func (c Config) cryptAddr(public wgtypes.Key) netip.Addr {
	addr := c.cryptPrefix().Addr().As16()
	copy(addr[8:], digest("wireguard", public.String()))
	return netip.AddrFrom16(addr)
}

// inside is the underlay as VXLAN sees it: what is inside of the encryption, if there is one.
func (c Config) inside(u Underlay) (Underlay, error) {
	if u.Crypt == nil || !u.Self.IsValid() {
		return u, nil
	}
	key, err := wgtypes.ParseKey(u.Crypt.Key)
	if err != nil {
		return u, api.Errorf(api.Invalid, "this host's key: %w", err)
	}
	in := Underlay{Self: c.cryptAddr(key.PublicKey())}
	if u.MTU != 0 {
		in.MTU = u.MTU - overheadCrypt
	}
	return in, nil
}

// insideOf is a host's address as VXLAN sees it.
func (c Config) insideOf(u Underlay, host netip.Addr) (netip.Addr, error) {
	if u.Crypt == nil {
		return host, nil
	}
	text, ok := u.Crypt.Peers[host]
	if !ok {
		return netip.Addr{}, api.Errorf(api.Precondition, "host %s has no key: nothing is sent to it", host)
	}
	key, err := wgtypes.ParseKey(text)
	if err != nil {
		return netip.Addr{}, api.Errorf(api.Invalid, "key of host %s: %w", host, err)
	}
	return c.cryptAddr(key), nil
}

// cryptUp makes the WireGuard device, or mends the one that is there. Hosts that are still peers are not disturbed.
func cryptUp(ctx context.Context, cfg Config, u Underlay, log *slog.Logger) error {
	in, err := cfg.inside(u)
	if err != nil {
		return err
	}
	name := cfg.cryptLink()
	link, err := findLink(name)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = cryptAdd(name); err != nil {
			return err
		}
		log.Info("encryption between hosts set up", "network", cfg.Name, "device", name, "address", in.Self)
	}
	mtu := 1500 - overheadCrypt
	if in.MTU != 0 {
		mtu = in.MTU
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set mtu %d of %q: %w", mtu, name, err)
		}
	}
	if err := cryptPeers(cfg, u); err != nil {
		return fmt.Errorf("configure %q: %w", name, err)
	}
	if err := cryptAddress(link, netip.PrefixFrom(in.Self, bits6)); err != nil {
		return fmt.Errorf("address of %q: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %q up: %w", name, err)
	}
	_, err = command.Run(ctx, strings.NewReader(cryptRules(cfg)), "nft", "-f", "-")
	return err
}

func cryptAdd(name string) (netlink.Link, error) {
	device := &netlink.Wireguard{LinkAttrs: netlink.NewLinkAttrs()}
	device.Name = name
	err := netlink.LinkAdd(device)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, api.Errorf(api.Unsupported, "this host's kernel has no wireguard, and what hosts send each other is to be encrypted: modprobe wireguard")
	}
	return device, wrap(err, "add %q", name)
}

// cryptAddress gives the device its one address.
func cryptAddress(link netlink.Link, want netip.Prefix) error {
	have, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V6) })
	if err != nil {
		return err
	}
	for _, a := range have {
		if addr, _ := netip.AddrFromSlice(a.IP); addr != want.Addr() && !addr.IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &a); err != nil {
				return err
			}
		}
	}
	if err := netlink.AddrAdd(link, address(want)); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// cryptPeers sets the keys, and tells the kernel of those peers that it has not, or has otherwise.
func cryptPeers(cfg Config, u Underlay) error {
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	have, err := client.Device(cfg.cryptLink())
	if err != nil {
		return err
	}
	want, err := cfg.cryptConfig(u, have)
	if err != nil {
		return err
	}
	return client.ConfigureDevice(cfg.cryptLink(), want)
}

// cryptConfig is what leads from what a device has to what it should have.
func (c Config) cryptConfig(u Underlay, have *wgtypes.Device) (wgtypes.Config, error) {
	key, err := wgtypes.ParseKey(u.Crypt.Key)
	if err != nil {
		return wgtypes.Config{}, api.Errorf(api.Invalid, "this host's key: %w", err)
	}
	port := cryptPort
	keepalive := cryptKeepalive
	want := wgtypes.Config{}
	if have.PrivateKey != key {
		want.PrivateKey = &key
	}
	if have.ListenPort != port {
		want.ListenPort = &port
	}
	known := map[wgtypes.Key]wgtypes.Peer{}
	for _, p := range have.Peers {
		known[p.PublicKey] = p
	}
	for host, text := range u.Crypt.Peers {
		public, err := wgtypes.ParseKey(text)
		if err != nil {
			return want, api.Errorf(api.Invalid, "key of host %s: %w", host, err)
		}
		at := netip.AddrPortFrom(host, cryptPort)
		p, ok := known[public]
		delete(known, public)
		if ok && p.Endpoint != nil && samePort(p.Endpoint.AddrPort(), at) && len(p.AllowedIPs) == 1 && p.PersistentKeepaliveInterval == keepalive {
			continue
		}
		want.Peers = append(want.Peers, wgtypes.PeerConfig{
			PublicKey: public, Endpoint: net.UDPAddrFromAddrPort(at), PersistentKeepaliveInterval: &keepalive,
			ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*ipNet(netip.PrefixFrom(c.cryptAddr(public), 128))},
		})
	}
	for public := range known {
		want.Peers = append(want.Peers, wgtypes.PeerConfig{PublicKey: public, Remove: true})
	}
	return want, nil
}

func samePort(a, b netip.AddrPort) bool {
	return a.Addr().Unmap().WithZone("") == b.Addr().Unmap().WithZone("") && a.Port() == b.Port()
}

// cryptDown removes the device, and the rules that go with it.
func cryptDown(ctx context.Context, cfg Config) error {
	link, err := findLink(cfg.cryptLink())
	if err != nil || link == nil {
		return err
	}
	if _, err := command.Run(ctx, strings.NewReader(cryptRulesGone), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("remove firewall rules: %w", err)
	}
	return linkDown(cfg.cryptLink(), "wireguard")
}

const cryptRulesGone = "table inet polder_crypt\ndelete table inet polder_crypt\n"

// cryptRules keep out VXLAN packets that did not come encrypted: the kernel takes them from anybody.
func cryptRules(cfg Config) string {
	return cryptRulesGone + fmt.Sprintf("table inet polder_crypt {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n"+
		"\t\tudp dport %d iifname != \"%s\" drop\n\t}\n}\n", vxlanPort, cfg.cryptLink())
}
