package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/internal/lab"
)

func newLabCutCommand(a *app) *cobra.Command {
	return newLabPairCommand(a, "cut", "Cut the cable between a host and the switch, or what two hosts send each other",
		func(ctx context.Context, l *lab.Lab, host string) error { return l.Cut(ctx, host) },
		func(ctx context.Context, l *lab.Lab, host, other string) error { return l.CutBetween(ctx, host, other) })
}

func newLabHealCommand(a *app) *cobra.Command {
	return newLabPairCommand(a, "heal", "Mend all that was cut of a host, or between two",
		func(ctx context.Context, l *lab.Lab, host string) error { return l.Heal(ctx, host) },
		func(ctx context.Context, l *lab.Lab, host, other string) error {
			return l.HealBetween(ctx, host, other)
		})
}

// newLabPairCommand is a command on one host, or on what is between two.
func newLabPairCommand(a *app, name, short string, one func(context.Context, *lab.Lab, string) error, two func(context.Context, *lab.Lab, string, string) error) *cobra.Command {
	return &cobra.Command{
		Use:               name + " HOST [HOST]",
		Short:             short,
		Args:              args(1, 2),
		ValidArgsFunction: a.completeLabHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.openLab()
			if err != nil {
				return err
			}
			if len(args) == 2 {
				return two(cmd.Context(), l, args[0], args[1])
			}
			return one(cmd.Context(), l, args[0])
		},
	}
}

func newLabShapeCommand(a *app) *cobra.Command {
	var rate, loss string
	var delay time.Duration
	var clear bool
	c := &cobra.Command{
		Use:   "shape HOST [--rate 1gbit] [--delay 5ms] [--loss 20%] | --clear",
		Short: "Make a host's cable slow, long or bad, in both directions",
		Long: `Make a host's cable slow, long or bad, in both directions. What is not given is as good as the machine makes it; it lasts until
the cable is shaped again, or made a plain one by --clear. Between two shaped hosts both shapes count.`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeLabHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			var s lab.Shape
			var err error
			changed := cmd.Flags().Changed
			if clear == (changed("rate") || changed("delay") || changed("loss")) {
				return api.Errorf(api.Invalid, "shape a lab host's cable: want --rate, --delay or --loss, or else --clear")
			}
			if changed("rate") {
				if s.RateBits, err = lab.ParseRate(rate); err != nil {
					return err
				}
			}
			if changed("loss") {
				if s.LossPercent, err = lab.ParseLoss(loss); err != nil {
					return err
				}
			}
			s.DelayMS = float64(delay) / float64(time.Millisecond)
			l, err := a.openLab()
			if err != nil {
				return err
			}
			return l.Shape(cmd.Context(), args[0], s)
		},
	}
	f := c.Flags()
	f.StringVar(&rate, "rate", "", "bits a second, each way: 100mbit, 1gbit")
	f.DurationVar(&delay, "delay", 0, "how much later packets arrive, each way")
	f.StringVar(&loss, "loss", "", "share of the packets that get lost, each way: 20%")
	f.BoolVar(&clear, "clear", false, "a plain cable again")
	return c
}

// labLink says what is special about a host's cable.
func labLink(h lab.Host) string {
	var parts []string
	if h.Shape != nil {
		parts = append(parts, h.Shape.String())
	}
	if len(h.CutFrom) > 0 {
		parts = append(parts, "cut from "+strings.Join(h.CutFrom, ", "))
	}
	return strings.Join(parts, "; ")
}
