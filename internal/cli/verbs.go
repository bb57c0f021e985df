package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"polder/api"
	"polder/client"
)

// verb is a command that does one thing to each VE that is named.
type verb struct {
	word, short string
	// act starts the operation for one VE.
	act func(ctx context.Context, c *client.Client, name string) (api.Operation, error)
	// before may refuse; nil: nothing to ask.
	before func(ctx context.Context, c *client.Client, names []string) error
	// states of VEs that are offered in completion; none: all.
	states []api.State
}

func (a *app) newVerbCommand(v verb) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:               v.word + " NAME…",
		Short:             v.short,
		Args:              args(1, -1),
		ValidArgsFunction: a.completeAll(a.veNames(v.states...)),
		RunE: func(cmd *cobra.Command, names []string) error {
			for _, name := range names {
				if err := api.CheckName("ve", name); err != nil {
					return err
				}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if v.before != nil {
				if err := v.before(cmd.Context(), c, names); err != nil {
					return err
				}
			}
			return a.actOnAll(cmd.Context(), c, v, w.wanted(), names)
		},
	}
	w.flags(cmd)
	return cmd
}

// actOnAll runs the verb for all names side by side; a name given twice counts once.
func (a *app) actOnAll(ctx context.Context, c *client.Client, v verb, wait bool, names []string) error {
	var starters []starter
	seen := map[string]bool{}
	for _, name := range names {
		if !seen[name] {
			seen[name] = true
			starters = append(starters, starter{v.word + " " + name, func(ctx context.Context) (api.Operation, error) { return v.act(ctx, c, name) }})
		}
	}
	endings := a.run(ctx, c, wait, starters...)
	ops := operations(endings)
	err := a.show(ops, func(out io.Writer) {
		for _, op := range ops {
			if !wait {
				fmt.Fprintln(out, op.ID)
			}
		}
	})
	if failed := a.failures(endings); failed != nil {
		return failed
	}
	return err
}

func newStartCommand(a *app) *cobra.Command {
	return a.newVerbCommand(verb{
		word: "start", short: "Start stopped VEs",
		act: func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
			return c.Start(ctx, name)
		},
		states: []api.State{api.Stopped, api.Failed},
	})
}

func newPauseCommand(a *app) *cobra.Command {
	return a.newVerbCommand(verb{
		word: "pause", short: "Freeze running VEs",
		act: func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
			return c.Pause(ctx, name)
		},
		states: []api.State{api.Running},
	})
}

func newResumeCommand(a *app) *cobra.Command {
	return a.newVerbCommand(verb{
		word: "resume", short: "Let paused VEs go on",
		act: func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
			return c.Resume(ctx, name)
		},
		states: []api.State{api.Paused},
	})
}

func newStopCommand(a *app) *cobra.Command {
	var req api.StopRequest
	cmd := a.newVerbCommand(verb{
		word: "stop", short: "Halt VEs",
		act: func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
			return c.Stop(ctx, name, req)
		},
		states: []api.State{api.Running, api.Paused, api.Starting},
	})
	stopFlags(cmd, &req)
	return cmd
}

func newRestartCommand(a *app) *cobra.Command {
	var req api.StopRequest
	cmd := a.newVerbCommand(verb{
		word: "restart", short: "Halt VEs and start them again",
		act: func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
			return c.Restart(ctx, name, req)
		},
		states: []api.State{api.Running, api.Paused},
	})
	stopFlags(cmd, &req)
	return cmd
}

func stopFlags(cmd *cobra.Command, req *api.StopRequest) {
	var grace time.Duration
	cmd.Flags().BoolVar(&req.Force, "force", false, "kill instead of an orderly halt")
	cmd.Flags().DurationVar(&grace, "timeout", 0, "`TIME` that an orderly halt may take before it is killed (default 30s)")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if grace < 0 || grace%time.Second != 0 {
			return api.Errorf(api.Invalid, "--timeout %s: want whole seconds, such as 90s", grace)
		}
		req.TimeoutSeconds = int(grace / time.Second)
		return nil
	}
}

func newDeleteCommand(a *app) *cobra.Command {
	var force bool
	cmd := a.newVerbCommand(verb{
		word: "delete", short: "Delete VEs and their data, also running ones",
		act: func(ctx context.Context, c *client.Client, name string) (api.Operation, error) {
			return c.Delete(ctx, name)
		},
		before: func(ctx context.Context, c *client.Client, names []string) error {
			if force {
				return nil
			}
			return a.askBeforeDelete(ctx, c, names)
		},
	})
	cmd.Flags().BoolVar(&force, "force", false, "do not ask, even if one is running")
	return cmd
}

// askBeforeDelete asks once about all that run, when somebody is there to answer.
func (a *app) askBeforeDelete(ctx context.Context, c *client.Client, names []string) error {
	if !term.IsTerminal(int(a.stdin.Fd())) || !a.stderrIsTerminal() {
		return nil
	}
	var running []string
	for _, name := range names {
		ve, err := c.VE(ctx, name)
		if err == nil && (ve.State == api.Running || ve.State == api.Paused) {
			running = append(running, name)
		}
	}
	if len(running) == 0 {
		return nil
	}
	fmt.Fprintf(a.stderr, "Running: %s. Delete with all data? [y/N] ", strings.Join(running, ", "))
	answered := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.stdin).ReadString('\n') //nolint:errcheck // no answer is a no
		answered <- line
	}()
	select {
	case line := <-answered:
		if word := strings.ToLower(strings.TrimSpace(line)); word == "y" || word == "yes" {
			return nil
		}
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
	}
	return api.Errorf(api.Cancelled, "delete: nothing was deleted; --force does not ask")
}
