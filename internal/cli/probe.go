package cli

import (
	"os"

	"github.com/spf13/cobra"

	"polder/internal/network"
)

// newProbeCommand is the process in which the daemon probes a VE while it is moved.
func newProbeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    network.ProberArg,
		Short:  "Ask a VE for an echo, for the daemon",
		Hidden: true,
		Args:   args(0, 0),
		RunE:   func(*cobra.Command, []string) error { return network.Prober(os.Stdin, os.Stdout) },
	}
}
