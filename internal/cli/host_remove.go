package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"polder/api"
)

func newHostRemoveCommand(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a host out of the cluster",
		Long: `Take a host out of the cluster for good.

It is refused while the host is alive or has VEs. With --force it is done nevertheless: the records of its VEs are deleted, and
what is on that host of them is lost. A host that was removed can join again with a new token.`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.hostNames),
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := api.CheckName("host", names[0]); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			removal, err := c.RemoveHost(cmd.Context(), names[0], force)
			if err != nil {
				return err
			}
			return a.show(removal, func(w io.Writer) {
				fmt.Fprintf(w, "%s removed\n", removal.Name)
				if len(removal.Lost) > 0 {
					fmt.Fprintf(w, "lost with it: %s\n", strings.Join(removal.Lost, ", "))
				}
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "also when it is alive or has VEs: these are lost")
	return c
}
