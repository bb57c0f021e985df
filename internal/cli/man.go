package cli

import (
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"polder/api"
)

// newManCommand writes the manual pages, for packaging.
func newManCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages to a directory",
		Hidden: true,
		Args:   args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return api.Errorf(api.Internal, "write manual pages: %w", err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			date := time.Unix(0, 0) // the same pages from the same source
			header := &doc.GenManHeader{Section: "1", Source: "Polder", Manual: "Polder", Date: &date}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return api.Errorf(api.Internal, "write manual pages: %w", err)
			}
			return nil
		},
	}
}
