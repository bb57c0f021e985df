package cli

import (
	"strconv"

	"github.com/spf13/cobra"
)

func newNetworkCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "network", Short: "The networks that VEs are attached to"})
	c.AddCommand(&cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List the networks",
		Args:              args(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			networks, err := c.Networks(cmd.Context())
			if err != nil {
				return err
			}
			t := newTable("NAME", "BRIDGE", "IPV4", "IPV6", "DOMAIN", "NAT", "MTU", "VES")
			for _, n := range networks {
				t.row(n.Name, n.Bridge, n.IPv4, n.IPv6, n.Domain, yesNo(n.NAT), strconv.Itoa(n.MTU), strconv.Itoa(n.VEs))
			}
			return a.show(networks, t.write)
		},
	})
	return c
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}
