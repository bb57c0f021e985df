package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"polder/api"
	"polder/client"
)

func newExecCommand(a *app) *cobra.Command {
	var req api.ExecRequest
	var forceTTY, noTTY bool
	cmd := &cobra.Command{
		Use:   "exec NAME -- CMD…",
		Short: "Run a command in a VE",
		Long:  "Run a command in a VE. The exit code is the command's own; 128 + n when signal n killed it.",
		Example: `  polder exec c1 -- systemctl is-system-running
  polder exec c1 -- bash
  tar -c . | polder exec c1 -- tar -x -C /srv`,
		Args:              args(2, -1),
		ValidArgsFunction: a.completeFirst(a.veNames(api.Running)),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if err := api.CheckName("ve", name); err != nil {
				return err
			}
			command, err := commandWords(cmd, args[1:])
			if err != nil {
				return err
			}
			if forceTTY && noTTY {
				return api.Errorf(api.Invalid, "exec: --tty and --no-tty exclude each other")
			}
			req.Command = command
			req.TTY = forceTTY || !noTTY && term.IsTerminal(int(a.stdin.Fd())) && term.IsTerminal(int(a.stdout.Fd()))
			return a.exec(cmd.Context(), name, req)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows NAME belongs to the command
	f.BoolVarP(&forceTTY, "tty", "t", false, "give the command a terminal (default: when this is one)")
	f.BoolVarP(&noTTY, "no-tty", "T", false, "give the command no terminal")
	f.StringVarP(&req.User, "user", "u", "", "run as this `USER[:GROUP]` (default root)")
	f.StringVarP(&req.Dir, "dir", "w", "", "run in this `DIR`")
	f.StringArrayVarP(&req.Env, "env", "e", nil, "set `KEY=VALUE` (may be repeated)")
	return cmd
}

// commandWords are the words after NAME: all of them, or when a "--" follows flags of our own, those after it.
func commandWords(cmd *cobra.Command, words []string) ([]string, error) {
	at := slices.Index(words, "--")
	switch {
	case at == 0:
		words = words[1:]
	case at > 0 && strings.HasPrefix(words[0], "-"):
		flags := cmd.Flags()
		if err := flags.Parse(words[:at]); err != nil {
			return nil, api.Errorf(api.Invalid, "%s: %w", cmd.CommandPath(), err)
		}
		if flags.NArg() > 0 {
			return nil, api.Errorf(api.Invalid, "%s: %q before \"--\" is no flag; usage: %s", cmd.CommandPath(), flags.Arg(0), cmd.UseLine())
		}
		words = words[at+1:]
	}
	if len(words) == 0 {
		return nil, api.Errorf(api.Invalid, "%s: no command was given; usage: %s", cmd.CommandPath(), cmd.UseLine())
	}
	return words, nil
}

func (a *app) exec(ctx context.Context, name string, req api.ExecRequest) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	term, err := a.takeTerminal(req.TTY)
	if err != nil {
		return err
	}
	defer term.restore()
	if req.TTY {
		req.Rows, req.Cols = term.size.Rows, term.size.Cols
		if kind := a.getenv("TERM"); kind != "" && !slices.ContainsFunc(req.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
			req.Env = append(req.Env, "TERM="+kind)
		}
	}
	// Signals are the command's now, not ours: ctx ends with the process only.
	a.passSignals(term)
	code, err := c.Exec(ctx, name, req, client.Streams{
		Stdin:   a.stdin,
		Stdout:  a.stdout,
		Stderr:  a.stderr,
		Resize:  term.resize,
		Signals: term.signals,
	})
	if err != nil {
		return err
	}
	if code != 0 {
		return exitStatus(code)
	}
	return nil
}

// passSignals sends the signals that this process gets to the command, instead of ending this process.
func (a *app) passSignals(t *terminal) {
	signal.Stop(a.signals)
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	t.signals = make(chan string)
	t.wait.Go(func() {
		defer signal.Stop(caught)
		for {
			select {
			case s := <-caught:
				name := strings.TrimPrefix(unix.SignalName(s.(syscall.Signal)), "SIG")
				select {
				case t.signals <- name:
				case <-t.done:
					return
				}
			case <-t.done:
				return
			}
		}
	})
}

func newConsoleCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "console NAME",
		Short:             "Attach to a VE's console; leave with Ctrl-]",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.veNames(api.Running, api.Starting, api.Paused)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := api.CheckName("ve", args[0]); err != nil {
				return err
			}
			return a.console(cmd.Context(), args[0])
		},
	}
}

func (a *app) console(ctx context.Context, name string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	raw := term.IsTerminal(int(a.stdin.Fd()))
	streams := client.Streams{Stdin: a.stdin, Stdout: a.stdout}
	var left bool
	if raw {
		fmt.Fprintf(a.stderr, "Attached to the console of %s; leave with Ctrl-]. Enter may be needed to see its prompt.\n", name)
		streams.Stdin = &escapeReader{r: a.stdin, leave: func() { left = true; leave() }}
	}
	t, err := a.takeTerminal(raw)
	if err != nil {
		return err
	}
	defer t.restore()
	streams.Resize = t.resize
	err = c.Console(ctx, name, t.size, streams)
	t.restore()
	if raw {
		fmt.Fprintln(a.stderr)
	}
	if api.KindOf(err) == api.Cancelled && left {
		return nil
	}
	return err
}
