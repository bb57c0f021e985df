package cli

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"polder/api"
)

func newEventsCommand(a *app) *cobra.Command {
	var after int64
	cmd := &cobra.Command{
		Use:               "events",
		Short:             "Print what happens in the cluster, as it happens",
		Long:              "Print what happens in the cluster, as it happens, until interrupted. With -o json every event is one line.",
		Args:              args(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if after < 0 {
				return api.Errorf(api.Invalid, "--after %d: want the id of an event", after)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			err = c.Events(cmd.Context(), after, a.printEvent)
			if cmd.Context().Err() != nil {
				return nil // to stop following is how it ends
			}
			return err
		},
	}
	cmd.Flags().Int64Var(&after, "after", 0, "begin after the event with this `ID` (default: from now on)")
	cmd.Flags().BoolP("follow", "f", true, "go on until interrupted; it always does")
	return cmd
}

// printEvent prints one event as soon as it has come.
func (a *app) printEvent(e api.Event) error {
	var out bytes.Buffer
	switch a.output {
	case asJSON:
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(e); err != nil {
			return api.Errorf(api.Internal, "encode event %d: %w", e.ID, err)
		}
	case asYAML:
		data, err := yaml.Marshal(e)
		if err != nil {
			return api.Errorf(api.Internal, "encode event %d: %w", e.ID, err)
		}
		out.WriteString("---\n")
		out.Write(data)
	case asTable:
		fmt.Fprintf(&out, "%s  %-19s %-20s %s\n", e.Time.Local().Format("15:04:05.000"), printable(e.Kind), printable(e.Subject), printable(e.Text))
	}
	if _, err := a.stdout.Write(out.Bytes()); err != nil {
		return api.Errorf(api.Internal, "write output: %w", err)
	}
	return nil
}
