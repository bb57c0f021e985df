package cli

import (
	"context"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newImagePublishCommand(a *app) *cobra.Command {
	var req api.PublishRequest
	var w waiting
	cmd := &cobra.Command{
		Use:   "publish NAME IMAGE",
		Short: "Make an image of a VE",
		Long: `Make an image of what a VE has become: of a stopped one, or of a snapshot. Either model can launch it, whatever the VE was.

What makes a system this one and no other is left out: its machine id, name, SSH host keys, leases, and what cloud-init did; so are its
journals. Everything else is in the image, also secrets that were put there.`,
		Example: `  polder stop web && polder image publish web web/2
  polder snapshot create web ready && polder image publish web web/3 --snapshot ready`,
		Args:              args(2, 2),
		ValidArgsFunction: a.completeFirst(a.veNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := api.CheckName("ve", args[0]); err != nil {
				return err
			}
			req.Alias = args[1]
			return a.makeImage(cmd.Context(), w.wanted(), req.Alias, "image publish "+req.Alias, func(ctx context.Context, c *client.Client) (api.Operation, error) {
				return c.Publish(ctx, args[0], req)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Snapshot, "snapshot", "", "of this `SNAPSHOT` of it (default: as it is)")
	f.StringVar(&req.Description, "description", "", "`TEXT` for people")
	f.BoolVar(&req.Replace, "replace", false, "move the name here if another image has it")
	w.flags(cmd)
	must(cmd.RegisterFlagCompletionFunc("snapshot", a.snapshotsOfFirst))
	return cmd
}
