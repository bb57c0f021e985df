package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newSnapshotCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{
		Use: "snapshot", Short: "VEs at a moment: take, list, restore, delete",
		Long: `Snapshots keep a VE as it is at a moment: its disk, by copy-on-write, and with --memory its memory too (VMs).

Of a running VE the disk is taken while its file systems are frozen by its guest agent (VMs), or its processes stand still (containers).
Restoring makes the VE what it was then; what it has become since is lost. One with memory goes on where it was.`,
	})
	c.AddCommand(newSnapshotCreateCommand(a), newSnapshotListCommand(a), newSnapshotScheduleCommand(a),
		newSnapshotVerb(a, "restore", "Make a VE what it was when a snapshot was taken", (*client.Client).RestoreSnapshot),
		newSnapshotVerb(a, "delete", "Delete a snapshot; those that came from it stay", (*client.Client).DeleteSnapshot))
	return c
}

func newSnapshotCreateCommand(a *app) *cobra.Command {
	var (
		req     api.SnapshotRequest
		expires lifeFlag
		w       waiting
	)
	cmd := &cobra.Command{
		Use:   "create NAME [SNAPSHOT]",
		Short: "Take a snapshot of a VE",
		Example: `  polder snapshot create db before-upgrade
  polder snapshot create db --memory --expires 24h`,
		Args:              args(1, 2),
		ValidArgsFunction: a.completeFirst(a.veNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := api.CheckName("ve", args[0])
			if err == nil && len(args) == 2 {
				req.Name = args[1]
				err = api.CheckName("snapshot", req.Name)
			}
			if err != nil {
				return err
			}
			req.ExpiresSeconds = int64(expires)
			return a.takeSnapshot(cmd.Context(), args[0], req, w.wanted())
		},
	}
	cmd.Flags().BoolVar(&req.Memory, "memory", false, "with its memory")
	cmd.Flags().Var(&expires, "expires", "delete it by itself after this time, such as 24h")
	w.flags(cmd)
	return cmd
}

func (a *app) takeSnapshot(ctx context.Context, name string, req api.SnapshotRequest, wait bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	end := a.run(ctx, c, wait, starter{"snapshot " + name, func(ctx context.Context) (api.Operation, error) { return c.CreateSnapshot(ctx, name, req) }})[0]
	if end.err != nil {
		return end.err
	}
	if !wait {
		return a.showStarted(end.op)
	}
	var s api.Snapshot
	if err := json.Unmarshal(end.op.Result, &s); err != nil {
		return api.Errorf(api.Internal, "snapshot %s: the result of operation %s: %w", name, end.op.ID, err)
	}
	return a.show(s, func(out io.Writer) { fmt.Fprintf(out, "%s of %s: %s; %d ms\n", s.Name, s.VE, s.How, s.StoodMS) })
}

func newSnapshotListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list NAME", Aliases: []string{"ls"}, Short: "List a VE's snapshots, as a tree", Args: args(1, 1), ValidArgsFunction: a.completeFirst(a.veNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			list, err := c.Snapshots(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			t := newTable("SNAPSHOT", "TAKEN", "MEMORY", "USED", "EXPIRES", "NOW")
			eachOfTree(list, "", "", func(indent string, s api.Snapshot) { t.row(snapshotRow(indent, s)...) })
			return a.show(list, t.write)
		},
	}
}

func snapshotRow(indent string, s api.Snapshot) []string {
	memory, expires, here := "no", "", ""
	if s.Memory {
		memory = "yes"
	}
	if s.ExpiresAt != nil {
		expires = s.ExpiresAt.Local().Format(time.DateTime)
	}
	if s.Current {
		here = "*"
	}
	return []string{indent + s.Name, s.CreatedAt.Local().Format(time.DateTime), memory, s.UsedBytes.String(), expires, here}
}

// eachOfTree goes through those that came from a snapshot, each followed by what came from it.
func eachOfTree(list []api.Snapshot, parent, indent string, each func(indent string, s api.Snapshot)) {
	for _, s := range list {
		if s.Parent == parent {
			each(indent, s)
			eachOfTree(list, s.Name, indent+"  ", each)
		}
	}
}

// newSnapshotVerb does something with one snapshot.
func newSnapshotVerb(a *app, word, short string, act func(*client.Client, context.Context, string, string) (api.Operation, error)) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use: word + " NAME SNAPSHOT", Short: short, Args: args(2, 2),
		ValidArgsFunction: func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(given) == 0 {
				return a.complete(a.veNames())(cmd, given, prefix)
			}
			return a.complete(a.snapshotNames(given[0]))(cmd, given, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			title := "snapshot " + word + " " + args[0]
			end := a.run(cmd.Context(), c, w.wanted(), starter{title, func(ctx context.Context) (api.Operation, error) { return act(c, ctx, args[0], args[1]) }})[0]
			if end.err != nil || w.wanted() {
				return end.err
			}
			return a.showStarted(end.op)
		},
	}
	w.flags(cmd)
	return cmd
}
