package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"polder/client"
)

// newThingList lists the things of one kind as a table with a row for each.
func newThingList[T any](a *app, short string, list func(*client.Client, context.Context) ([]T, error), columns []string, row func(T) []string) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             short,
		Args:              args(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			things, err := list(c, cmd.Context())
			if err != nil {
				return err
			}
			t := newTable(columns...)
			for _, thing := range things {
				t.row(row(thing)...)
			}
			return a.show(things, t.write)
		},
	}
}

// newThingInfo shows one thing, which its argument names.
func newThingInfo[T any](a *app, use, short string, names words, get func(*client.Client, context.Context, string) (T, error), write func(io.Writer, T)) *cobra.Command {
	return &cobra.Command{
		Use:               use,
		Short:             short,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(names),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			thing, err := get(c, cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(thing, func(w io.Writer) { write(w, thing) })
		},
	}
}
