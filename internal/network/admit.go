package network

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"polder/internal/command"
)

// A packet must pass every base chain of its hook, so a firewall with a drop policy (docker's, ufw's) also drops VEs'
// packets, whatever our own table says. Where that firewall lives in the tables of iptables, which by custom are shared
// by all who use them, chains of our own are hung in there, as docker and libvirt do. Other tables belong to somebody: it
// is only said what to do there.

// dropsVEs says whether the chain drops what no rule of its own accepts, where VEs' packets come by.
func (c chain) dropsVEs() bool {
	return (c.Hook == "forward" || c.Hook == "input") && c.Policy == "drop"
}

// iptables is the tool whose table the chain is in, or "".
func (c chain) iptables() string {
	switch {
	case c.Table != "filter":
		return ""
	case c.Family == "ip":
		return "iptables"
	case c.Family == "ip6":
		return "ip6tables"
	}
	return ""
}

// admissionChains are ours, by the chain of iptables that jumps to them.
func admissionChains() map[string]string {
	return map[string]string{"INPUT": "POLDER-INPUT", "FORWARD": "POLDER-FORWARD"}
}

// admit lets VEs' packets through the drop policies of others, as far as that can be done.
func admit(ctx context.Context, cfg Config, dnsPort int, present []chain, log *slog.Logger) error {
	overlay, err := findLink(cfg.overlayLink())
	if err != nil {
		return err
	}
	done := map[string]bool{}
	for _, c := range present {
		tool := c.iptables()
		switch {
		case c.Table == "firewalld" && c.Hook == "forward":
			log.Warn("a firewall may drop what VEs send", "table", c.Family+" "+c.Table, "chain", c.Name,
				"remedy", "firewall-cmd --permanent --zone=trusted --add-interface="+cfg.Bridge+" && firewall-cmd --reload")
		case !c.dropsVEs() || done[tool]:
		case tool == "":
			log.Warn("a firewall drops what VEs send", "table", c.Family+" "+c.Table, "chain", c.Name,
				"remedy", fmt.Sprintf("nft insert rule %s %s %s iifname %s accept", c.Family, c.Table, c.Name, cfg.Bridge))
		default:
			if err := admitBy(ctx, tool, admission(tool, cfg, dnsPort, overlay != nil)); err != nil {
				return fmt.Errorf("network %q: let ves through the host's firewall: %w", cfg.Name, err)
			}
			done[tool] = true
		}
	}
	return nil
}

// admitBy puts our chains into the tables of iptables or ip6tables, in the place of older ones.
func admitBy(ctx context.Context, tool, rules string) error {
	if _, err := command.Run(ctx, strings.NewReader(rules), tool+"-restore", "--noflush", "-w"); err != nil {
		return err
	}
	for from, to := range admissionChains() {
		if _, err := command.Run(ctx, nil, tool, "-w", "-C", from, "-j", to); err == nil {
			continue
		}
		if _, err := command.Run(ctx, nil, tool, "-w", "-I", from, "-j", to); err != nil {
			return err
		}
	}
	return nil
}

// admission is the text for iptables-restore: VEs may send anywhere, get answers, and use the network's services; joined hosts may
// send each other their packets.
func admission(tool string, cfg Config, dnsPort int, joined bool) string {
	var b strings.Builder
	b.WriteString("*filter\n:POLDER-INPUT - [0:0]\n:POLDER-FORWARD - [0:0]\n")
	service := func(match string) { fmt.Fprintf(&b, "-A POLDER-INPUT -i %s -p %s -j ACCEPT\n", cfg.Bridge, match) }
	service(fmt.Sprintf("udp --dport %d", dnsPort))
	service(fmt.Sprintf("tcp --dport %d", dnsPort))
	if tool == "ip6tables" {
		service("udp --dport 547")
		service("ipv6-icmp") // router and neighbour discovery among others
	} else {
		service("udp --dport 67")
		service("icmp --icmp-type echo-request")
	}
	if joined {
		fmt.Fprintf(&b, "-A POLDER-INPUT -p udp -m multiport --dports %d,%d -j ACCEPT\n", vxlanPort, cryptPort)
	}
	fmt.Fprintf(&b, "-A POLDER-FORWARD -i %s -j ACCEPT\n", cfg.Bridge)
	if cfg.NAT {
		fmt.Fprintf(&b, "-A POLDER-FORWARD -o %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n", cfg.Bridge)
	} else {
		fmt.Fprintf(&b, "-A POLDER-FORWARD -o %s -j ACCEPT\n", cfg.Bridge)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// dismiss takes our chains out again.
func dismiss(ctx context.Context) error {
	chains, err := listChains(ctx)
	if err != nil {
		return err
	}
	for _, c := range chains {
		for from, to := range admissionChains() {
			tool := c.iptables()
			if tool == "" || c.Name != to {
				continue
			}
			// The jump may be gone already; the chain can't be deleted while it is there.
			_, _ = command.Run(ctx, nil, tool, "-w", "-D", from, "-j", to)
			if _, err := command.Run(ctx, nil, tool, "-w", "-F", to); err != nil {
				return fmt.Errorf("remove firewall rules: %w", err)
			}
			if _, err := command.Run(ctx, nil, tool, "-w", "-X", to); err != nil {
				return fmt.Errorf("remove firewall rules: %w", err)
			}
		}
	}
	return nil
}
