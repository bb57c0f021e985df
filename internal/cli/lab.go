package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/internal/lab"
)

func newLabCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{
		Use:   "lab",
		Short: "Make a cluster on this machine, to try things out",
		Long: `Make a cluster on this machine, to try things out.

Every host of the lab has its own namespaces, a Debian 13 root and a daemon; they are joined by a switch of their own and
reach nothing outside, save for package mirrors. "polder lab down" removes all of it. The lab is in ` + lab.DefaultDir + `
(POLDER_LAB names another directory, for another lab), what is built once for all labs in ` + lab.DefaultCache + ` (POLDER_CACHE).`,
	})
	c.AddCommand(
		newLabUpCommand(a), newLabDownCommand(a), newLabListCommand(a), newLabExecCommand(a),
		newLabHostCommand(a, "kill", "End all that runs in a host at once, as a power cut does", func(ctx context.Context, l *lab.Lab, host string) error {
			return l.Kill(ctx, host)
		}),
		newLabHostCommand(a, "start", "Start a host that was killed, with the disk that it had", func(ctx context.Context, l *lab.Lab, host string) error {
			return l.Start(ctx, host, a.report)
		}),
		newLabCutCommand(a), newLabHealCommand(a), newLabShapeCommand(a),
		newLabInnerCommand("enter", lab.Enter),
		newLabInnerCommand("init", lab.Init),
		newLabInnerCommand("forward", lab.Forward),
		newLabBecomeCommand(),
	)
	return c
}

// openLab is the lab that POLDER_LAB means.
func (a *app) openLab() (*lab.Lab, error) {
	return lab.Open(a.getenv("POLDER_LAB"), a.getenv("POLDER_CACHE"))
}

// report prints the progress of a lab command.
func (a *app) report(format string, args ...any) {
	fmt.Fprintf(a.stderr, format+"\n", args...)
}

// labContext is the name of the context of a lab; the one in the usual place is just "lab".
func labContext(l *lab.Lab) string {
	if l.Dir() == lab.DefaultDir {
		return "lab"
	}
	if name := "lab-" + filepath.Base(l.Dir()); api.CheckName("context", name) == nil {
		return name
	}
	return "lab-" + l.ID()
}

func newLabUpCommand(a *app) *cobra.Command {
	var o lab.UpOptions
	backend, size := "", lab.DefaultPoolSize.String()
	c := &cobra.Command{
		Use:   "up",
		Short: "Make the lab, or what is missing of it",
		Args:  args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if backend != "" {
				if o.Backend, err = lab.ParseBackend(backend); err != nil {
					return err
				}
			}
			if o.PoolSize, err = api.ParseBytes(size); err != nil {
				return err
			}
			if cmd.Flags().Changed("hosts") && o.Hosts < 1 {
				return api.Errorf(api.Invalid, "%d lab hosts: want 1 to %d", o.Hosts, lab.MaxHosts)
			}
			return a.labUp(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.IntVar(&o.Hosts, "hosts", 1, "how many hosts; more are added to a lab that is up")
	f.StringVar(&backend, "backend", backend, "what hosts are: namespace, on this machine's kernel (the default), or vm, on Debian's")
	f.BoolVar(&o.Alone, "alone", false, "each host is a cluster of its own, instead of one together")
	f.IntVar(&o.Sites, "sites", 0, "spread the hosts over so many sites: site1, site2, …")
	f.StringVar(&size, "pool-size", size, "size of the storage pool of new hosts; a sparse file")
	f.BoolVar(&o.NoDaemon, "no-daemon", false, "hosts without a daemon, for tests of its parts")
	must(f.MarkHidden("no-daemon"))
	must(c.RegisterFlagCompletionFunc("backend", cobra.FixedCompletions([]string{"namespace", "vm"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

func (a *app) labUp(ctx context.Context, o lab.UpOptions) error {
	l, err := a.openLab()
	if err != nil {
		return err
	}
	start := time.Now()
	o.Report = a.report
	hosts, err := l.Up(ctx, o)
	if err != nil {
		return err
	}
	if o.NoDaemon {
		return nil
	}
	name := labContext(l)
	if err := a.setContext(name, hosts[0].URL()); err != nil {
		return err
	}
	a.report("lab: %s up after %.1f s; commands now talk to %s (context %s)", plural(len(hosts), "host"), time.Since(start).Seconds(), hosts[0].Name, name)
	if len(hosts) > 1 && o.Alone {
		a.report("lab: each host is a cluster of its own; for another than h1: POLDER_HOST=%s polder …", hosts[1].URL())
	}
	return nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func newLabDownCommand(a *app) *cobra.Command {
	var purge bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Remove the lab and all that is in it",
		Args:  args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.openLab()
			if err != nil {
				return err
			}
			if err := l.Down(cmd.Context()); err != nil {
				return err
			}
			if err := a.removeContext(labContext(l)); err != nil {
				return err
			}
			if purge {
				return l.Purge()
			}
			if _, err := os.Stat(l.Cache()); err == nil {
				a.report("lab: down; the cache %s stays, for the next one (--purge removes it)", l.Cache())
			}
			return nil
		},
	}
	c.Flags().BoolVar(&purge, "purge", false, "remove the cache too")
	return c
}

func newLabListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the hosts of the lab",
		Args:  args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.openLab()
			if err != nil {
				return err
			}
			hosts, err := l.List()
			if err != nil {
				return err
			}
			return a.show(hosts, func(w io.Writer) {
				t := newTable("NAME", "STATE", "PID", "ADDRESS", "LINK", "SOCKET")
				for _, h := range hosts {
					pid := ""
					if h.PID != 0 {
						pid = fmt.Sprint(h.PID)
					}
					t.row(h.Name, string(h.State), pid, h.Address, labLink(h), h.Socket)
				}
				t.write(w)
			})
		},
	}
}

func newLabExecCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:               "exec HOST -- COMMAND…",
		Short:             "Run a command in a host of the lab, as root",
		Args:              args(2, -1),
		ValidArgsFunction: a.completeLabHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			command, err := commandWords(cmd, args[1:])
			if err != nil {
				return err
			}
			l, err := a.openLab()
			if err != nil {
				return err
			}
			// Signals are the command's, so they must not end ours.
			code, err := l.Exec(context.WithoutCancel(cmd.Context()), args[0], command, a.stdin, a.stdout, a.stderr)
			if err == nil && code != 0 {
				return exitStatus(code)
			}
			return err
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

// newLabHostCommand is a command that does one thing to one host.
func newLabHostCommand(a *app, name, short string, do func(context.Context, *lab.Lab, string) error) *cobra.Command {
	return &cobra.Command{
		Use:               name + " HOST",
		Short:             short,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeLabHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.openLab()
			if err != nil {
				return err
			}
			return do(cmd.Context(), l, args[0])
		},
	}
}

// newLabInnerCommand is one that only the lab itself runs, as the first process of a host.
func newLabInnerCommand(name string, run func() error) *cobra.Command {
	return &cobra.Command{
		Use:    name,
		Hidden: true,
		Args:   cobra.ArbitraryArgs,
		RunE:   func(*cobra.Command, []string) error { return run() },
	}
}

// newLabBecomeCommand is PID 1 of a host that is a virtual machine.
func newLabBecomeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "become HOST",
		Hidden: true,
		Args:   args(1, 1),
		RunE:   func(_ *cobra.Command, args []string) error { return lab.Become(args[0]) },
	}
}

func (a *app) completeLabHost(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	l, err := a.openLab()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	hosts, err := l.List()
	var names []string
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
