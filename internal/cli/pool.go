package cli

import (
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
)

func newPoolCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "pool", Short: "The pools that hold images and volumes"})
	c.AddCommand(&cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List the pools",
		Args:              args(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			pools, err := c.Pools(cmd.Context())
			if err != nil {
				return err
			}
			t := newTable("NAME", "DRIVER", "PATH", "TOTAL", "FREE", "VOLUMES")
			for _, p := range pools {
				t.row(p.Name, p.Driver, p.Path, p.TotalBytes.String(), p.FreeBytes.String(), strconv.Itoa(p.Volumes))
			}
			return a.show(pools, t.write)
		},
	})
	return c
}

func newVolumeCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "volume", Short: "The volumes of VEs"})
	c.AddCommand(newVolumeListCommand(a))
	return c
}

func newVolumeListCommand(a *app) *cobra.Command {
	var pool string
	cmd := &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List the volumes",
		Args:              args(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			names := []string{pool}
			if pool == "" {
				if names, err = a.poolNames(cmd.Context(), c); err != nil {
					return err
				}
			}
			volumes := []api.Volume{}
			for _, name := range names {
				more, err := c.Volumes(cmd.Context(), name)
				if err != nil {
					return err
				}
				volumes = slices.Concat(volumes, more)
			}
			t := newTable("NAME", "POOL", "VE", "SIZE", "USED")
			for _, v := range volumes {
				size := ""
				if v.SizeBytes > 0 {
					size = v.SizeBytes.String()
				}
				t.row(v.Name, v.Pool, v.VE, size, v.UsedBytes.String())
			}
			return a.show(volumes, t.write)
		},
	}
	cmd.Flags().StringVar(&pool, "pool", "", "only those of this `POOL`")
	must(cmd.RegisterFlagCompletionFunc("pool", a.complete(a.poolNames)))
	return cmd
}
