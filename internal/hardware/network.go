package hardware

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
)

// probeNetwork makes one link of each kind, and lists nftables, in a network namespace of its own.
func probeNetwork(ctx context.Context) []api.Capability {
	answer := make(chan []api.Capability, 1)
	go func() {
		// The thread is in another namespace for good: as it is not unlocked, it ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			answer <- guessNetwork()
			return
		}
		answer <- tryNetwork(ctx)
	}()
	return <-answer
}

// linkKinds are what VEs' networks are made of.
var linkKinds = []linkKind{
	{"veth", "veth", "containers' interfaces", api.Missing},
	{"bridge", "bridge", "networks", api.Missing},
	{"vxlan", "vxlan", "networks that span hosts", api.Missing},
	{"wireguard", "wireguard", "encryption of what VEs send between hosts", api.Limited},
	{"tun", "tun", "VMs' interfaces", api.Missing},
}

type linkKind struct {
	name, module, use string
	without           api.Level // what a host is that has none
}

func tryNetwork(ctx context.Context) []api.Capability {
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	tries := map[string]func() error{
		"veth":      func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs("v0"), PeerName: "v1"}) },
		"bridge":    func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("b0")}) },
		"vxlan":     func() error { return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs("x0"), VxlanId: 1, Port: 4789}) },
		"tun":       tryTap,
		"wireguard": func() error { return netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs("w0")}) },
	}
	var found []api.Capability
	for _, kind := range linkKinds {
		c := api.Capability{Name: kind.name, Level: api.OK, Detail: kind.use}
		if err := tries[kind.name](); err != nil {
			c.Level = kind.without
			c.Detail = fmt.Sprintf("no %s: cannot make one: %v", kind.use, err)
			c.Remedy = "modprobe " + kind.module + ", or boot a kernel that has it (Debian's has)"
		}
		found = append(found, c)
	}
	return append(found, tryNftables(ctx))
}

func tryTap() error {
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer tun.Close()
	req, err := unix.NewIfreq("t0")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	return unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, req)
}

// tryNftables makes the kinds of chains that Polder uses; nft is started by this thread, and so in its namespace.
func tryNftables(ctx context.Context) api.Capability {
	c := api.Capability{Name: "nftables", Level: api.OK, Detail: "firewall and NAT"}
	nft := findTool("nft")
	v, err := nft.version(ctx)
	switch {
	case api.KindOf(err) == api.Unsupported:
		return nft.missing("nftables")
	case err != nil:
		c.Level, c.Detail, c.Remedy = api.Limited, err.Error(), nft.reinstall()
		return c
	}
	c.Detail += ", nft " + v.String()
	const ruleset = `table inet polder_probe {
	chain nat { type nat hook postrouting priority srcnat; oifname "x" masquerade; }
}
`
	if _, err := (command.Command{Name: "nft", Args: []string{"-c", "-f", "-"}, Stdin: reader(ruleset)}).Run(ctx); err != nil {
		c.Level = api.Missing
		c.Detail = "the kernel refuses a NAT rule: " + lastLine(err)
		c.Remedy = "modprobe nf_tables nft_chain_nat nft_masq, or boot a kernel that has them (Debian's has)"
	}
	return c
}

// guessNetwork goes by what is loaded or could be: making links needs root.
func guessNetwork() []api.Capability {
	var found []api.Capability
	kinds := linkKinds
	kinds = append(kinds[:len(kinds):len(kinds)], linkKind{"nftables", "nf_tables", "firewall and NAT", api.Missing})
	for _, kind := range kinds {
		c := api.Capability{Name: kind.name, Level: api.OK, Detail: kind.use + " (kernel module found; not tried: needs root)"}
		if !moduleKnown(kind.module) {
			c.Level, c.Detail, c.Remedy = api.Limited, "cannot be tried without root", "sudo polder doctor"
		}
		found = append(found, c)
	}
	return found
}

func probeVhostNet(context.Context) []api.Capability {
	c := api.Capability{Name: "vhost-net", Level: api.OK, Detail: "the kernel moves VMs' packets"}
	if _, err := os.Stat("/dev/vhost-net"); errors.Is(err, os.ErrNotExist) {
		c.Level = api.Limited
		c.Detail = "QEMU moves VMs' packets itself: slower"
		c.Remedy = "modprobe vhost_net"
	}
	return []api.Capability{c}
}
