package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
)

// The uplink is a cable from the switch to the machine's own network namespace, with rules there that let nothing
// through save packages. It is only made when there is a mirror to reach.

const (
	uplinkPort  = "uplink" // the switch's end
	tablePrefix = "polder_lab_"
	ipForward   = "/proc/sys/net/ipv4/ip_forward"
	// forwardNote exists when a lab switched forwarding on; the last lab switches it off again.
	forwardNote = "/run/polder-lab/ip_forward"
)

// uplink is the machine's end of the cable.
func (l *Lab) uplink() string { return "plab" + l.id }

func (l *Lab) table() string { return tablePrefix + l.id }

// makeUplink makes what is missing of the way out and renews its rules. It says false, and makes nothing, when there is
// nothing to reach outside.
func (l *Lab) makeUplink(ctx context.Context, r *record, o outside) (bool, error) {
	if len(o.addresses()) == 0 {
		return false, nil
	}
	// The rules come first: there must be no moment at which the cable is there without them.
	nft, err := l.tool(command.Command{Name: "nft", Args: []string{"-f", "-"}, Stdin: strings.NewReader(l.rules(r, o))})
	if err == nil {
		_, err = nft.Run(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("set the rules of the lab's uplink: %w", err)
	}
	if err := l.plugUplink(r); err != nil {
		return false, api.Errorf(api.Internal, "make the lab's uplink: %w", err)
	}
	if err := startForwarding(); err != nil {
		return false, api.Errorf(api.Internal, "make the lab's uplink: switch on forwarding: %w", err)
	}
	return true, nil
}

func (l *Lab) plugUplink(r *record) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	inside, err := l.openSwitch()
	if err != nil {
		return err
	}
	defer inside.Close()
	if _, err := inside.LinkByName(uplinkPort); err != nil {
		ns, err := netns.GetFromPath(l.path(switchFile))
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := l.removeUplinkPort(h); err != nil {
			return err
		}
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs(l.uplink()), PeerName: uplinkPort, PeerNamespace: netlink.NsFd(int(ns))}); err != nil {
			return err
		}
	}
	// The machine itself is not to be found on the lab's network by IPv6.
	err = os.WriteFile("/proc/sys/net/ipv6/conf/"+l.uplink()+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	link, err := h.LinkByName(l.uplink())
	if err != nil {
		return err
	}
	gateway, _ := r.address(0)
	if err := setAddress(h, link, gateway); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	return enslave(inside, uplinkPort)
}

func (l *Lab) removeUplinkPort(h *netlink.Handle) error {
	link, err := h.LinkByName(l.uplink())
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// rules are for nft -f: they replace the lab's table as a whole. Only the machine itself can open connections to hosts.
func (l *Lab) rules(r *record, o outside) string {
	name := l.uplink()
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n", l.table(), l.table(), l.table())
	b.WriteString(addressSet("mirrors", o.addresses()) + addressSet("resolvers", o.resolvers))
	fmt.Fprintf(&b, `	chain out {
		meta l4proto { tcp, udp } th dport 53 ip daddr @resolvers accept
		tcp flags syn tcp option maxseg size set rt mtu
		tcp dport { %s } ip daddr @mirrors accept
		ct state established,related accept
		reject with icmpx admin-prohibited
	}
`, strings.Join(o.ports, ", "))
	fmt.Fprintf(&b, `	chain forward {
		type filter hook forward priority filter - 5; policy accept;
		iifname %q jump out
		oifname %q ct state established,related accept
		oifname %q drop
	}
	chain input {
		type filter hook input priority filter - 5; policy accept;
		iifname %q meta l4proto { tcp, udp } th dport 53 ip daddr @resolvers accept
		iifname %q ct state established,related accept
		iifname %q reject with icmpx admin-prohibited
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr %s oifname != %q masquerade
	}
}
`, name, name, name, name, name, name, r.Subnet, name)
	return b.String()
}

func addressSet(name string, addrs []netip.Addr) string {
	text := "\tset " + name + " {\n\t\ttype ipv4_addr\n"
	if len(addrs) > 0 {
		var list []string
		for _, a := range addrs {
			list = append(list, a.String())
		}
		text += "\t\telements = { " + strings.Join(list, ", ") + " }\n"
	}
	return text + "\t}\n"
}

// probe tells the user when a host can't reach a mirror although the uplink is there: then another firewall is in the
// way, which the lab does not touch.
func (l *Lab) probe(ctx context.Context, host int, o outside, report Report) {
	pid := l.initPID(nameOf(host))
	mirror := o.addresses()[0]
	answer := make(chan error, 1)
	go func() {
		// Never unlocked: the thread is in the host's network and ends with the goroutine.
		runtime.LockOSThread()
		ns, err := netns.GetFromPid(pid)
		if err == nil {
			err = unix.Setns(int(ns), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			var c net.Conn
			dialer := net.Dialer{Timeout: 3 * time.Second}
			if c, err = dialer.DialContext(ctx, "tcp4", netip.AddrPortFrom(mirror, 80).String()); err == nil {
				c.Close()
			}
		}
		answer <- err
	}()
	if err := <-answer; err != nil {
		report("switch: hosts can't reach the Debian mirror (%v); does another firewall of this machine drop what it forwards?", err)
	}
}

// removeUplink removes the cable, then the rules, and switches forwarding off when this was the last lab that needs it.
func (l *Lab) removeUplink(ctx context.Context) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return api.Errorf(api.Internal, "remove the lab's uplink: %w", err)
	}
	defer h.Close()
	if err := l.removeUplinkPort(h); err != nil {
		return api.Errorf(api.Internal, "remove the lab's uplink: %w", err)
	}
	if _, err := command.Find("nft"); err != nil {
		return nil // so it was never run
	}
	tables, err := command.Run(ctx, nil, "nft", "list", "tables", "inet")
	if err != nil {
		return fmt.Errorf("remove the rules of the lab's uplink: %w", err)
	}
	others := false
	for line := range strings.Lines(string(tables)) {
		name := strings.TrimPrefix(strings.TrimSpace(line), "table inet ")
		if name == l.table() {
			if _, err := command.Run(ctx, nil, "nft", "delete", "table", "inet", name); err != nil {
				return fmt.Errorf("remove the rules of the lab's uplink: %w", err)
			}
		} else if strings.HasPrefix(name, tablePrefix) {
			others = true
		}
	}
	if err := stopForwarding(others); err != nil {
		return api.Errorf(api.Internal, "remove the lab's uplink: switch off forwarding: %w", err)
	}
	return nil
}

// startForwarding leaves a note before it changes anything, so that a crash in between is mended by the next Down.
func startForwarding() error {
	data, err := os.ReadFile(ipForward)
	if err != nil || strings.TrimSpace(string(data)) != "0" {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(forwardNote), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(forwardNote, nil, 0o644); err != nil {
		return err
	}
	return os.WriteFile(ipForward, []byte("1"), 0)
}

func stopForwarding(others bool) error {
	if _, err := os.Stat(forwardNote); err != nil || others {
		return nil
	}
	if err := os.WriteFile(ipForward, []byte("0"), 0); err != nil {
		return err
	}
	if err := os.Remove(forwardNote); err != nil {
		return err
	}
	if err := os.Remove(filepath.Dir(forwardNote)); err != nil && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}
