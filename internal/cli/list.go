package cli

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"polder/api"
)

func newListCommand(a *app) *cobra.Command {
	var labels, states []string
	var model string
	cmd := &cobra.Command{
		Use:               "list",
		Aliases:           []string{"ls"},
		Short:             "List VEs",
		Args:              args(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keep, err := veFilter(labels, states, model)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ves, err := c.VEs(cmd.Context())
			if err != nil {
				return err
			}
			ves = slices.DeleteFunc(ves, func(ve api.VE) bool { return !keep(ve) })
			return a.show(ves, veTable(ves).write)
		},
	}
	cmd.Flags().StringArrayVar(&labels, "label", nil, "only those with the label `K=V`, or with any label K (may be repeated: all must match)")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only those in one of these `STATES`")
	cmd.Flags().StringVar(&model, "model", "", "only those of this `MODEL`")
	completeWords(cmd, "state", veStates()...)
	completeWords(cmd, "model", "container", "vm", "partition")
	return cmd
}

func veTable(ves []api.VE) *table {
	t := newTable("NAME", "MODEL", "STATE", "HOST", "IMAGE", "ADDRESS", "CPUS", "MEMORY", "DISK")
	for _, ve := range ves {
		t.row(ve.Name, string(ve.Model), string(ve.State), veHost(ve), ve.Image, plainAddress(ve),
			strconv.Itoa(ve.CPUs), ve.MemoryBytes.String(), ve.DiskBytes.String())
	}
	return t
}

// veHost is where a VE is, and where a move under way takes it.
func veHost(ve api.VE) string {
	if ve.MovingTo == "" {
		return ve.Host
	}
	return ve.Host + " → " + ve.MovingTo
}

// plainAddress is the VE's first IPv4 address, else its first, without the prefix length.
func plainAddress(ve api.VE) string {
	var first string
	for _, entry := range ve.Addresses {
		prefix, err := netip.ParsePrefix(entry.Address)
		if err != nil {
			continue
		}
		if prefix.Addr().Is4() {
			return prefix.Addr().String()
		}
		if first == "" {
			first = prefix.Addr().String()
		}
	}
	return first
}

func veStates() []string {
	var words []string
	for _, s := range []api.State{api.Stopped, api.Starting, api.Running, api.Paused, api.Stopping, api.Failed} {
		words = append(words, string(s))
	}
	return words
}

// veFilter reads the filters of list.
func veFilter(labels, states []string, model string) (func(api.VE) bool, error) {
	for _, s := range states {
		if err := oneOf("--state", s, veStates()...); err != nil {
			return nil, err
		}
	}
	if model != "" {
		if _, err := api.ParseModel(model); err != nil {
			return nil, err
		}
	}
	return func(ve api.VE) bool {
		if len(states) > 0 && !slices.Contains(states, string(ve.State)) || model != "" && model != string(ve.Model) {
			return false
		}
		for _, l := range labels {
			if !hasLabel(ve, l) {
				return false
			}
		}
		return true
	}, nil
}
