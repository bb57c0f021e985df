package cli

import (
	"context"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newPoolCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "pool", Short: "The pools that hold images and volumes"})
	c.AddCommand(newPoolListCommand(a))
	return c
}

func newPoolListCommand(a *app) *cobra.Command {
	var host string
	list := func(c *client.Client, ctx context.Context) ([]api.Pool, error) { return poolsOn(ctx, c, host) }
	columns := []string{"NAME", "HOST", "DRIVER", "PATH", "TOTAL", "FREE", "VOLUMES"}
	cmd := newThingList(a, "List the pools of all hosts that answer", list, columns, func(p api.Pool) []string {
		return []string{p.Name, p.Host, p.Driver, p.Path, p.TotalBytes.String(), p.FreeBytes.String(), strconv.Itoa(p.Volumes)}
	})
	a.hostFlag(cmd, &host)
	return cmd
}

func newVolumeCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "volume", Short: "The volumes of VEs"})
	c.AddCommand(newVolumeListCommand(a))
	return c
}

func newVolumeListCommand(a *app) *cobra.Command {
	var pool, host string
	list := func(c *client.Client, ctx context.Context) ([]api.Volume, error) {
		pools, err := poolsOn(ctx, c, host)
		volumes := []api.Volume{}
		known := false
		for _, p := range pools {
			if pool != "" && p.Name != pool {
				continue
			}
			known = true
			more, err := c.HostVolumes(ctx, p.Host, p.Name)
			if err != nil {
				return nil, err
			}
			volumes = append(volumes, more...)
		}
		if err == nil && pool != "" && !known {
			err = api.Errorf(api.NotFound, "pool %q not found; see: polder pool list", pool)
		}
		return volumes, err
	}
	columns := []string{"NAME", "HOST", "POOL", "VE", "SIZE", "USED"}
	cmd := newThingList(a, "List the volumes of all hosts that answer", list, columns, func(v api.Volume) []string {
		size := ""
		if v.SizeBytes > 0 {
			size = v.SizeBytes.String()
		}
		return []string{v.Name, v.Host, v.Pool, v.VE, size, v.UsedBytes.String()}
	})
	cmd.Flags().StringVar(&pool, "pool", "", "only those of this `POOL`")
	must(cmd.RegisterFlagCompletionFunc("pool", a.complete(a.poolNames)))
	a.hostFlag(cmd, &host)
	return cmd
}

func (a *app) hostFlag(cmd *cobra.Command, host *string) {
	cmd.Flags().StringVar(host, "host", "", "only those of this `HOST`")
	must(cmd.RegisterFlagCompletionFunc("host", a.complete(a.hostNames)))
}

// poolsOn lists the pools of a host, or when none is named of all that answer.
func poolsOn(ctx context.Context, c *client.Client, host string) ([]api.Pool, error) {
	if host != "" {
		return c.HostPools(ctx, host)
	}
	hosts, err := c.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	hosts = slices.DeleteFunc(hosts, func(h api.Host) bool { return h.State != api.HostReady || h.Role == api.RoleWitness })
	pools := []api.Pool{}
	for _, h := range hosts {
		more, err := c.HostPools(ctx, h.Name)
		if err != nil {
			return nil, err
		}
		pools = append(pools, more...)
	}
	return pools, nil
}
