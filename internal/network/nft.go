package network

import (
	"context"
	"fmt"
	"strings"

	"polder/internal/command"
)

// rules is the network's nftables table as text for nft -f. The table is replaced as a whole, in one transaction.
//
// There are no accept rules in it: a packet must pass every base chain, so accepting one in a table of our own does not
// keep another table from dropping it (see admit).
func rules(cfg Config, dnsPort int) string {
	var b strings.Builder
	b.WriteString("table inet polder\ndelete table inet polder\ntable inet polder {\n")
	fmt.Fprintf(&b, "\tcomment \"network %s\"\n", cfg.Name)
	if cfg.NAT {
		b.WriteString("\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n")
		fmt.Fprintf(&b, "\t\tip saddr %s oifname != \"%s\" masquerade\n", cfg.IPv4.Masked(), cfg.Bridge)
		fmt.Fprintf(&b, "\t\tip6 saddr %s oifname != \"%s\" masquerade\n", cfg.IPv6.Masked(), cfg.Bridge)
		b.WriteString("\t}\n")
	}
	if dnsPort != portDNS {
		b.WriteString("\tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n")
		for _, proto := range []string{"udp", "tcp"} {
			fmt.Fprintf(&b, "\t\tiifname \"%s\" fib daddr type local %s dport %d redirect to :%d\n", cfg.Bridge, proto, portDNS, dnsPort)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// rulesUp puts the table in place of the one that may be there. Connections under way keep their translation.
func rulesUp(ctx context.Context, cfg Config, dnsPort int) error {
	if _, err := command.Run(ctx, strings.NewReader(rules(cfg, dnsPort)), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("network %q: set up nat: %w", cfg.Name, err)
	}
	return nil
}

// rulesDown removes the table, if it is there.
func rulesDown(ctx context.Context) error {
	if _, err := command.Run(ctx, strings.NewReader("table inet polder\ndelete table inet polder\n"), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("remove nat: %w", err)
	}
	return nil
}
