package cli

import (
	"github.com/spf13/cobra"

	"polder/api"
)

func newLogsCommand(a *app) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:               "logs NAME",
		Short:             "Print a VE's console output",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.veNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := api.CheckName("ve", args[0]); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			err = c.Logs(cmd.Context(), args[0], follow, a.stdout)
			if follow && cmd.Context().Err() != nil {
				return nil // to stop following is how it ends
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more comes, until interrupted")
	return cmd
}
