package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newPoolCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "pool", Short: "The pools that hold images and volumes"})
	columns := []string{"NAME", "DRIVER", "PATH", "TOTAL", "FREE", "VOLUMES"}
	c.AddCommand(newThingList(a, "List the pools", (*client.Client).Pools, columns, func(p api.Pool) []string {
		return []string{p.Name, p.Driver, p.Path, p.TotalBytes.String(), p.FreeBytes.String(), strconv.Itoa(p.Volumes)}
	}))
	return c
}

func newVolumeCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "volume", Short: "The volumes of VEs"})
	c.AddCommand(newVolumeListCommand(a))
	return c
}

func newVolumeListCommand(a *app) *cobra.Command {
	var pool string
	list := func(c *client.Client, ctx context.Context) ([]api.Volume, error) {
		if pool != "" {
			return c.Volumes(ctx, pool)
		}
		names, err := a.poolNames(ctx, c)
		volumes := []api.Volume{}
		for _, name := range names {
			more, err := c.Volumes(ctx, name)
			if err != nil {
				return nil, err
			}
			volumes = append(volumes, more...)
		}
		return volumes, err
	}
	cmd := newThingList(a, "List the volumes", list, []string{"NAME", "POOL", "VE", "SIZE", "USED"}, func(v api.Volume) []string {
		size := ""
		if v.SizeBytes > 0 {
			size = v.SizeBytes.String()
		}
		return []string{v.Name, v.Pool, v.VE, size, v.UsedBytes.String()}
	})
	cmd.Flags().StringVar(&pool, "pool", "", "only those of this `POOL`")
	must(cmd.RegisterFlagCompletionFunc("pool", a.complete(a.poolNames)))
	return cmd
}
