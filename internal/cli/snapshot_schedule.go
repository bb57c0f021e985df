package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
)

func newSnapshotScheduleCommand(a *app) *cobra.Command {
	var (
		every, keep lifeFlag
		memory, off bool
	)
	cmd := &cobra.Command{
		Use:   "schedule NAME",
		Short: "Have snapshots of a VE taken, and deleted, by themselves",
		Long: `Have snapshots of a VE taken, and deleted, by themselves. They are named auto- and the time. One is taken at once, then --every so
often as long as the VE runs; those that came due while it did not, or while its host was down, are not made up for.

Without flags it shows the schedule. --off ends it; the snapshots that there are stay until their time is over.`,
		Example: `  polder snapshot schedule db --every 1h --keep 48h
  polder snapshot schedule db --off`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.veNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			set := every != 0 || keep != 0 || memory
			var ve api.VE
			switch {
			case off && set:
				return api.Errorf(api.Invalid, "snapshot schedule: --off goes with no other flag")
			case off:
				ve, err = c.UnscheduleSnapshots(cmd.Context(), args[0])
			case set && (every == 0 || keep == 0):
				return api.Errorf(api.Invalid, "snapshot schedule: want --every and --keep")
			case set:
				ve, err = c.ScheduleSnapshots(cmd.Context(), args[0], api.SnapshotSchedule{EverySeconds: int64(every), KeepSeconds: int64(keep), Memory: memory})
			default:
				ve, err = c.VE(cmd.Context(), args[0])
			}
			if err != nil {
				return err
			}
			return a.show(ve.Schedule, func(out io.Writer) { fmt.Fprintf(out, "%s: %s\n", ve.Name, scheduleText(ve.Schedule)) })
		},
	}
	f := cmd.Flags()
	f.Var(&every, "every", "from one to the next, such as 1h")
	f.Var(&keep, "keep", "how long each is kept, such as 48h")
	f.BoolVar(&memory, "memory", false, "with its memory")
	f.BoolVar(&off, "off", false, "take no more")
	return cmd
}

func scheduleText(s *api.SnapshotSchedule) string {
	if s == nil {
		return "no snapshots by themselves"
	}
	text := fmt.Sprintf("a snapshot every %v, kept for %v", time.Duration(s.EverySeconds)*time.Second, time.Duration(s.KeepSeconds)*time.Second)
	if s.Memory {
		text += ", with its memory"
	}
	return text
}
