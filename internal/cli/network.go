package cli

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newNetworkCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "network", Short: "The networks that VEs are attached to"})
	columns := []string{"NAME", "BRIDGE", "IPV4", "IPV6", "DOMAIN", "NAT", "MTU", "ENCRYPTED", "VES"}
	c.AddCommand(newThingList(a, "List the networks", (*client.Client).Networks, columns, func(n api.Network) []string {
		return []string{n.Name, n.Bridge, n.IPv4, n.IPv6, n.Domain, yesNo(n.NAT), strconv.Itoa(n.MTU), yesNo(n.Encrypted), strconv.Itoa(n.VEs)}
	}), newNetworkSetCommand(a))
	return c
}

func newNetworkSetCommand(a *app) *cobra.Command {
	var encrypted string
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a network on all hosts",
		Long: `Change a network on all hosts.

With --encrypted on, what VEs send each other between hosts goes through the kernel's WireGuard (UDP port 7443), with a key of
each host's own. It is refused while a host's kernel has none: see polder doctor there. VEs run on; what they send each other between hosts
at that moment may be lost.`,
		Args:              args(1, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if encrypted != "on" && encrypted != "off" {
				return api.Errorf(api.Invalid, "network set: --encrypted %q: want on or off", encrypted)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			on := encrypted == "on"
			n, err := c.ChangeNetwork(cmd.Context(), args[0], api.NetworkChange{Encrypted: &on})
			if err != nil {
				return err
			}
			return a.show(n, func(w io.Writer) {
				fmt.Fprintf(w, "network %s: encrypted between hosts: %s\n", n.Name, yesNo(n.Encrypted))
			})
		},
	}
	c.Flags().StringVar(&encrypted, "encrypted", "", "`on|off`: what VEs send each other between hosts")
	return c
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}
