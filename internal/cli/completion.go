package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

// completionTime bounds what the shell waits for a list of words.
const completionTime = 2 * time.Second

// words asks the server for the words that can stand at some place.
type words func(ctx context.Context, c *client.Client) ([]string, error)

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete offers the words; without a server there are none, and no error disturbs the shell's line.
func (a *app) complete(list words) completer {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFirst offers words for the first argument only.
func (a *app) completeFirst(list words) completer {
	offer := a.complete(list)
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return offer(cmd, args, prefix)
	}
}

// completeAll offers words for every argument, but none twice.
func (a *app) completeAll(list words) completer {
	offer := a.complete(list)
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		found, directive := offer(cmd, args, prefix)
		used := map[string]bool{}
		for _, arg := range args {
			used[arg] = true
		}
		var rest []string
		for _, word := range found {
			if !used[word] {
				rest = append(rest, word)
			}
		}
		return rest, directive
	}
}

// completeWords offers fixed words as a flag's value.
func completeWords(cmd *cobra.Command, flag string, list ...string) {
	must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)))
}

// veNames lists VEs in one of the states; none given: all.
func (a *app) veNames(states ...api.State) words {
	return func(ctx context.Context, c *client.Client) ([]string, error) {
		ves, err := c.VEs(ctx)
		var names []string
		for _, ve := range ves {
			if len(states) == 0 || contains(states, ve.State) {
				names = append(names, ve.Name)
			}
		}
		return names, err
	}
}

// snapshotNames lists the snapshots of a VE.
func (a *app) snapshotNames(ve string) words {
	return func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Snapshots(ctx, ve)
		var names []string
		for _, s := range list {
			names = append(names, s.Name)
		}
		return names, err
	}
}

// snapshotsOfFirst completes a snapshot of the VE that is the command's first argument.
func (a *app) snapshotsOfFirst(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(given) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.complete(a.snapshotNames(given[0]))(cmd, given, prefix)
}

func (a *app) imageAliases(ctx context.Context, c *client.Client) ([]string, error) {
	images, err := c.Images(ctx)
	var names []string
	for _, image := range images {
		names = append(names, image.Aliases...)
	}
	return names, err
}

// operationIDs lists the operations still under way.
func (a *app) operationIDs(ctx context.Context, c *client.Client) ([]string, error) {
	ops, err := c.Operations(ctx)
	var ids []string
	for _, op := range ops {
		if !op.State.Final() {
			ids = append(ids, op.ID+"\t"+op.Kind+" "+op.Target)
		}
	}
	return ids, err
}

func (a *app) hostNames(ctx context.Context, c *client.Client) ([]string, error) {
	hosts, err := c.Hosts(ctx)
	var names []string
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	return names, err
}

func (a *app) poolNames(ctx context.Context, c *client.Client) ([]string, error) {
	pools, err := c.Pools(ctx)
	var names []string
	for _, p := range pools {
		names = append(names, p.Name)
	}
	return names, err
}

func contains(states []api.State, s api.State) bool {
	for _, state := range states {
		if state == s {
			return true
		}
	}
	return false
}
