package network

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"polder/internal/command"
)

// rules is the network's nftables table as text for nft -f. The table is replaced as a whole, in one transaction.
//
// There are no accept rules in it: a packet must pass every base chain, so accepting one in a table of our own does not
// keep another table from dropping it (see admit).
//
// The empty chain stands for the content of the others: a table that has it is the same one.
func rules(cfg Config, dnsPort int) (text, chain string) {
	body := ruleChains(cfg, dnsPort)
	chain = "rules_" + hex.EncodeToString(digest("rules", body)[:6])
	return "table inet polder\ndelete table inet polder\ntable inet polder {\n" + body + "\tchain " + chain + " {\n\t}\n}\n", chain
}

func ruleChains(cfg Config, dnsPort int) string {
	var b strings.Builder
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
	return b.String()
}

// rulesUp puts the table in place of another one. Connections under way keep their translation.
func rulesUp(ctx context.Context, cfg Config, dnsPort int, present []chain) error {
	text, mark := rules(cfg, dnsPort)
	if slices.ContainsFunc(present, func(c chain) bool { return c.Family == "inet" && c.Table == "polder" && c.Name == mark }) {
		return nil
	}
	if _, err := command.Run(ctx, strings.NewReader(text), "nft", "-f", "-"); err != nil {
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

// chain is one that nft lists; Hook and Policy are empty when it is only jumped to.
type chain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Hook   string `json:"hook"`
	Policy string `json:"policy"`
}

// listChains lists the chains of all tables on this host.
func listChains(ctx context.Context) ([]chain, error) {
	out, err := command.Run(ctx, nil, "nft", "-j", "list", "chains")
	if err != nil {
		return nil, fmt.Errorf("list firewall rules: %w", err)
	}
	return parseChains(out)
}

// parseChains reads nft's JSON (libnftables-json(5)).
func parseChains(text []byte) ([]chain, error) {
	var list struct {
		Objects []struct {
			Chain *chain `json:"chain"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("read nft's list of chains: %w", err)
	}
	var chains []chain
	for _, o := range list.Objects {
		if o.Chain != nil {
			chains = append(chains, *o.Chain)
		}
	}
	return chains, nil
}
