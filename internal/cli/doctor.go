package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"polder/api"
	"polder/internal/hardware"
)

func newDoctorCommand(a *app) *cobra.Command {
	dir := hardware.DefaultDataDir
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine can do, what is missing, and how to get it",
		Long: `Say what this machine can do, what is missing, and how to get it.

Nothing is changed, and no server is needed. As root more can be tried. The exit code is 1 when something is missing
without which no VE can be run.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			found := hardware.CapabilitiesAt(cmd.Context(), dir)
			if err := cmd.Context().Err(); err != nil {
				return api.Errorf(api.Cancelled, "doctor: %w", err)
			}
			colour := term.IsTerminal(int(a.stdout.Fd())) && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
			if err := a.show(found, func(w io.Writer) { writeDiagnosis(w, found, colour) }); err != nil {
				return err
			}
			return verdict(found)
		},
	}
	cmd.Flags().StringVar(&dir, "data", dir, "where `DIR` Polder keeps, or is to keep, its data")
	must(cmd.MarkFlagDirname("data"))
	return cmd
}

// verdict is an error when something essential is missing.
func verdict(found []api.Capability) error {
	var missing []string
	for _, c := range found {
		if c.Level == api.Missing && hardware.Essential(c.Name) {
			missing = append(missing, c.Name)
		}
	}
	if len(missing) > 0 {
		return api.Errorf(api.Unsupported, "this machine lacks what every host needs: %s; see the remedies that doctor shows", strings.Join(missing, ", "))
	}
	return nil
}

// ANSI colours of the levels.
var levelColours = map[api.Level]string{api.OK: "\x1b[32m", api.Limited: "\x1b[33m", api.Missing: "\x1b[31m"}

// writeDiagnosis prints one line a capability, with its remedy on a line below, and a summary.
func writeDiagnosis(w io.Writer, found []api.Capability, colour bool) {
	width := 0
	count := map[api.Level]int{}
	for _, c := range found {
		width = max(width, len(c.Name))
		count[c.Level]++
	}
	paint := func(level api.Level, text string) string {
		if !colour {
			return text
		}
		return levelColours[level] + text + "\x1b[0m"
	}
	for _, c := range found {
		level := paint(c.Level, fmt.Sprintf("%-7s", c.Level))
		fmt.Fprintf(w, "%s  %-*s  %s\n", level, width, c.Name, printable(c.Detail))
		if c.Remedy != "" {
			fmt.Fprintf(w, "%*s  → %s\n", len("limited  ")+width, "", printable(c.Remedy))
		}
	}
	fmt.Fprintf(w, "\n%d ok, %d limited, %d missing\n", count[api.OK], count[api.Limited], count[api.Missing])
	if packages := packagesToInstall(found); len(packages) > 0 {
		fmt.Fprintf(w, "for all that is only not installed: apt-get install %s\n", strings.Join(packages, " "))
	}
}

// packagesToInstall gathers the packages of remedies that do no more than install them.
func packagesToInstall(found []api.Capability) []string {
	var packages []string
	for _, c := range found {
		names, ok := strings.CutPrefix(c.Remedy, "apt-get install ")
		if !ok || strings.ContainsAny(names, ";&(") || strings.HasPrefix(names, "-") {
			continue
		}
		for _, name := range strings.Fields(names) {
			if !slices.Contains(packages, name) {
				packages = append(packages, name)
			}
		}
	}
	return packages
}
