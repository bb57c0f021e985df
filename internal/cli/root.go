package cli

import (
	"github.com/spf13/cobra"

	"polder/api"
)

// Groups of commands in the help text.
const (
	groupVE      = "ve"
	groupThings  = "things"
	groupMachine = "machine"
)

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "polder",
		Short:         "Run containers, virtual machines and partitions from one image, and move them about",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	asGroup(root)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetIn(a.stdin)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 {
			return unknownCommand(cmd, words[0]) // the flag is not what is wrong
		}
		return api.Errorf(api.Invalid, "%s: %w; see: %s --help", cmd.CommandPath(), err, cmd.CommandPath())
	})
	root.PersistentFlags().VarP(&a.output, "output", "o", "how to show things: table, json or yaml")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)))
	root.AddGroup(
		&cobra.Group{ID: groupVE, Title: "Virtual environments:"},
		&cobra.Group{ID: groupThings, Title: "Images, storage, networks, operations:"},
		&cobra.Group{ID: groupMachine, Title: "This machine and the cluster:"},
	)
	root.SetHelpCommandGroupID(groupMachine)
	root.SetCompletionCommandGroupID(groupMachine)
	// One line a command. The developers of the daemon, the doctor and the lab add newServeCommand(a), newDoctorCommand(a)
	// and newLabCommand(a) to the groupMachine list below, each from a file of its own.
	inGroup(root, groupVE,
		newLaunchCommand(a),
		newListCommand(a),
		newInfoCommand(a),
		newStartCommand(a),
		newStopCommand(a),
		newRestartCommand(a),
		newPauseCommand(a),
		newResumeCommand(a),
		newDeleteCommand(a),
		newMoveCommand(a),
		newCloneCommand(a),
		newSnapshotCommand(a),
		newExecCommand(a),
		newConsoleCommand(a),
		newLogsCommand(a),
		newCpCommand(a),
	)
	inGroup(root, groupThings,
		newImageCommand(a),
		newNetworkCommand(a),
		newPoolCommand(a),
		newVolumeCommand(a),
		newOpCommand(a),
		newEventsCommand(a),
	)
	inGroup(root, groupMachine,
		newServeCommand(a),
		newLabCommand(a),
		newDoctorCommand(a),
		newHostCommand(a),
		newContextCommand(a),
		newVersionCommand(a),
	)
	root.AddCommand(newManCommand(a), newProbeCommand())
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		asGroup(completion)
	}
	return root
}

func inGroup(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// asGroup makes a command that only holds others: alone it shows its help, and an unknown word after it is an error.
func asGroup(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	return c
}

func unknownCommand(cmd *cobra.Command, word string) error {
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		return api.Errorf(api.Invalid, "unknown command %q for %q: did you mean %q?", word, cmd.CommandPath(), near[0])
	}
	return api.Errorf(api.Invalid, "unknown command %q for %q; see: %s --help", word, cmd.CommandPath(), cmd.CommandPath())
}

// args checks the number of arguments; most < 0: any number.
func args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		problem := "too few arguments"
		if len(args) > least {
			problem = "too many arguments"
		}
		return api.Errorf(api.Invalid, "%s: %s; usage: %s", cmd.CommandPath(), problem, cmd.UseLine())
	}
}

// must is for mistakes in the command tree itself, which the first run of any command shows.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
