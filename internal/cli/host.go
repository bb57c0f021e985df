package cli

import (
	"context"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newHostCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "host", Short: "The machines that run VEs"})
	c.AddCommand(newHostListCommand(a), newHostInfoCommand(a))
	return c
}

func newHostListCommand(a *app) *cobra.Command {
	columns := []string{"NAME", "STATE", "VES", "CPUS", "MEMORY", "KERNEL", "VERSION"}
	return newThingList(a, "List the hosts", (*client.Client).Hosts, columns, func(h api.Host) []string {
		return []string{h.Name, h.State, strconv.Itoa(h.VEs), strconv.Itoa(h.CPUs), h.MemoryBytes.String(), h.Kernel, h.Version}
	})
}

func newHostInfoCommand(a *app) *cobra.Command {
	return newThingInfo(a, "info NAME", "Show a host and what it can do", a.hostNames, hostNamed, writeHost)
}

//nolint:revive // the form of the client's methods
func hostNamed(c *client.Client, ctx context.Context, name string) (api.Host, error) {
	hosts, err := c.Hosts(ctx)
	if err != nil {
		return api.Host{}, err
	}
	i := slices.IndexFunc(hosts, func(h api.Host) bool { return h.Name == name })
	if i < 0 {
		return api.Host{}, api.Errorf(api.NotFound, "host %q not found; see: polder host list", name)
	}
	return hosts[i], nil
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
