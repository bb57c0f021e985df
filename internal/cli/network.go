package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newNetworkCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "network", Short: "The networks that VEs are attached to"})
	columns := []string{"NAME", "BRIDGE", "IPV4", "IPV6", "DOMAIN", "NAT", "MTU", "VES"}
	c.AddCommand(newThingList(a, "List the networks", (*client.Client).Networks, columns, func(n api.Network) []string {
		return []string{n.Name, n.Bridge, n.IPv4, n.IPv6, n.Domain, yesNo(n.NAT), strconv.Itoa(n.MTU), strconv.Itoa(n.VEs)}
	}))
	return c
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}
