package cli

import (
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
)

func newHostCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "host", Short: "The machines that run VEs"})
	c.AddCommand(newHostListCommand(a), newHostInfoCommand(a))
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
			t := newTable("NAME", "STATE", "VES", "CPUS", "MEMORY", "KERNEL", "VERSION")
			for _, h := range hosts {
				t.row(h.Name, h.State, strconv.Itoa(h.VEs), strconv.Itoa(h.CPUs), h.MemoryBytes.String(), h.Kernel, h.Version)
			}
			return a.show(hosts, t.write)
		},
	}
}

func newHostInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "info NAME",
		Short:             "Show a host and what it can do",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.hostNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			hosts, err := c.Hosts(cmd.Context())
			if err != nil {
				return err
			}
			for _, h := range hosts {
				if h.Name == args[0] {
					return a.show(h, func(w io.Writer) { writeHost(w, h) })
				}
			}
			return api.Errorf(api.NotFound, "host %q not found; see: polder host list", args[0])
		},
	}
}

func writeHost(w io.Writer, h api.Host) {
	f := newFields()
	f.add("Name", h.Name)
	f.add("State", h.State)
	f.add("Version", h.Version)
	f.add("Kernel", h.Kernel)
	f.add("CPUs", strconv.Itoa(h.CPUs))
	f.add("Memory", h.MemoryBytes.String())
	f.add("VEs", strconv.Itoa(h.VEs))
	f.add("Booted", moment(h.BootedAt))
	f.write(w)
	writeCapabilities(w, h.Capabilities)
}
