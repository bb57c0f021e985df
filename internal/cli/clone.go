package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"polder/api"
)

func newCloneCommand(a *app) *cobra.Command {
	var (
		req    api.CloneRequest
		labels []string
		ttl    lifeFlag
		w      waiting
	)
	cmd := &cobra.Command{
		Use:   "clone NAME NEW",
		Short: "Make VEs that begin as another one is",
		Long: `Make VEs that begin as another one is. Their disks are copied on write: a clone takes what differs.

A stopped VE is cloned as it is on its disk. --live forks a VE while it runs, memory and all: it stands still for a moment, and the
forks go on from there, each with its own copy of the memory, made as it is written to. --snapshot makes them begin as the VE was then,
whatever it does now.

Each new VE has an identity of its own before it is on the network: name, addresses, machine id, SSH host keys. With --count they
are named NEW-1, NEW-2 and so on.`,
		Example: `  polder clone web web2 --start
  polder clone web old --snapshot before-upgrade
  polder clone db test --live --count 20 --ephemeral`,
		Args:              args(2, 2),
		ValidArgsFunction: a.completeFirst(a.veNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.TTLSeconds = args[1], int64(ttl)
			if cmd.Flags().Changed("count") && req.Count < 1 {
				return api.Errorf(api.Invalid, "--count %d: want at least 1", req.Count)
			}
			err := api.CheckName("ve", args[0])
			if err == nil {
				_, err = req.Names()
			}
			if err == nil {
				req.Labels, err = parseLabels(labels)
			}
			if err != nil {
				return err
			}
			return a.clone(cmd.Context(), args[0], req, w.wanted())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&req.Live, "live", false, "fork it while it runs, memory and all")
	f.StringVar(&req.Snapshot, "snapshot", "", "as it was at this `SNAPSHOT`; with --live, one with memory")
	f.IntVar(&req.Count, "count", 1, "how many (`N`)")
	f.BoolVar(&req.Start, "start", false, "start the new ones; a fork runs anyway")
	f.BoolVar(&req.Ephemeral, "ephemeral", false, "delete them when they stop")
	f.Var(&ttl, "ttl", "delete them by themselves after this time, such as 2h")
	f.StringArrayVar(&labels, "label", nil, "label `K=V` of the new ones, beside those that it has (may be repeated)")
	w.flags(cmd)
	must(cmd.RegisterFlagCompletionFunc("snapshot", a.snapshotsOfFirst))
	return cmd
}

func (a *app) clone(ctx context.Context, name string, req api.CloneRequest, wait bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	end := a.run(ctx, c, wait, starter{"clone " + name, func(ctx context.Context) (api.Operation, error) { return c.Clone(ctx, name, req) }})[0]
	if end.err != nil {
		return end.err
	}
	if !wait {
		return a.showStarted(end.op)
	}
	var result api.CloneResult
	if err := json.Unmarshal(end.op.Result, &result); err != nil {
		return api.Errorf(api.Internal, "clone %s: the result of operation %s: %w", name, end.op.ID, err)
	}
	return a.show(result, func(out io.Writer) {
		for _, ve := range result.VEs {
			fmt.Fprintf(out, "%s is %s: %s", ve.Name, ve.State, ve.Model)
			if ip := plainAddress(ve); ip != "" {
				fmt.Fprintf(out, ", %s", ip)
			}
			fmt.Fprintln(out)
		}
		if req.Live && req.Snapshot == "" {
			fmt.Fprintf(out, "%s stood still for %d ms\n", name, result.StoodMS)
		}
	})
}
