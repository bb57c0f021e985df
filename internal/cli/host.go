package cli

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newHostCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "host", Short: "The machines that run VEs"})
	c.AddCommand(newHostListCommand(a), newHostInfoCommand(a), newHostTokenCommand(a), newHostRemoveCommand(a))
	return c
}

func newHostListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List the hosts",
		Args:              args(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			hosts, err := c.Hosts(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.show(hosts, func(w io.Writer) { writeHosts(w, hosts) }); err != nil {
				return err
			}
			if len(hosts) > 0 && a.output == asTable {
				a.advise(hosts[0].Advice)
			}
			return nil
		},
	}
}

func writeHosts(w io.Writer, hosts []api.Host) {
	t := newTable("NAME", "STATE", "ROLE", "ADDRESS", "SITE", "VES", "CPUS", "MEMORY", "VERSION")
	for _, h := range hosts {
		t.row(h.Name, string(h.State), string(h.Role), h.Address, h.Site, strconv.Itoa(h.VEs), strconv.Itoa(h.CPUs), h.MemoryBytes.String(), h.Version)
	}
	t.write(w)
}

// advise prints what the cluster will not survive, beside the output.
func (a *app) advise(text string) {
	if text != "" {
		fmt.Fprintf(a.stderr, "note: %s\n", printable(text))
	}
}

func newHostInfoCommand(a *app) *cobra.Command {
	return newThingInfo(a, "info NAME", "Show a host and what it can do", a.hostNames, (*client.Client).Host, writeHost)
}

func writeHost(w io.Writer, h api.Host) {
	f := newFields()
	f.add("Name", h.Name)
	f.add("State", hostState(h))
	f.add("Role", string(h.Role))
	f.add("Address", h.Address)
	f.add("Site", h.Site)
	f.add("Version", h.Version)
	f.add("Kernel", h.Kernel)
	f.add("CPUs", strconv.Itoa(h.CPUs))
	f.add("Memory", freeOf(h.MemoryBytes, h.FreeMemoryBytes))
	if h.PoolFreeBytes > 0 {
		f.add("Pool", h.PoolFreeBytes.String()+" free")
	}
	f.add("VEs", strconv.Itoa(h.VEs))
	f.add("Booted", moment(h.BootedAt))
	f.add("Joined", moment(h.JoinedAt))
	f.add("Note", h.Advice)
	f.write(w)
	writeCapabilities(w, h.Capabilities)
}

func hostState(h api.Host) string {
	if h.UnreachableSince == nil {
		return string(h.State)
	}
	return string(h.State) + " since " + moment(*h.UnreachableSince)
}

func freeOf(total, free api.Bytes) string {
	if free == 0 {
		return total.String()
	}
	return fmt.Sprintf("%s, %s free", total, free)
}
