// Package cli is the command line: it reads flags, calls the API through package client, and shows what comes back as
// text, table, JSON, YAML or progress bars. One file a command.
//
// It decides nothing that the server could decide. Errors go to standard error as one line; the exit code follows the
// error's kind (see api.Kind.ExitCode). Nothing here is safe for concurrent use unless it says so.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"

	"polder/api"
	"polder/client"
)

// app is what all commands share. Each newXCommand gets it and reads its fields only when the command runs, after the
// flags were parsed.
type app struct {
	version string
	stdin   *os.File
	stdout  *os.File
	stderr  *os.File
	getenv  func(string) string

	output  format // -o
	signals chan os.Signal
	dialled *client.Client
}

// Main runs the command line of this process and returns its exit code.
func Main(version string) int {
	a := &app{
		version: versionOf(version),
		stdin:   os.Stdin,
		stdout:  os.Stdout,
		stderr:  os.Stderr,
		getenv:  os.Getenv,
	}
	ctx, cancel := a.interruptible(context.Background())
	defer cancel()
	root := newRootCommand(a)
	root.SetArgs(os.Args[1:])
	return a.exitCode(root.ExecuteContext(ctx))
}

// interruptible gives a context that the first SIGINT or SIGTERM ends; a second one ends the process at once.
func (a *app) interruptible(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	a.signals = make(chan os.Signal, 1)
	signal.Notify(a.signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-a.signals:
			signal.Stop(a.signals)
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// client connects to the server that POLDER_HOST or the current context names; the connection is made by the first call.
func (a *app) client() (*client.Client, error) {
	if a.dialled != nil {
		return a.dialled, nil
	}
	url, err := a.serverURL()
	if err != nil {
		return nil, err
	}
	a.dialled, err = client.New(url)
	return a.dialled, err
}

// stderrIsTerminal says whether progress is drawn as bars.
func (a *app) stderrIsTerminal() bool { return term.IsTerminal(int(a.stderr.Fd())) }

// exitStatus ends the process with a code that is not an error of ours, such as the one of a command in a VE.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// exitCode prints err as one line and says how the process ends.
func (a *app) exitCode(err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	a.complain(err)
	return api.KindOf(err).ExitCode()
}

// complain prints an error as one line on standard error.
func (a *app) complain(err error) {
	text := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	fmt.Fprintf(a.stderr, "error: %s%s\n", printable(text), a.hint(err))
}

// hint says what to do about an error that has nothing to do with the request itself.
func (a *app) hint(err error) string {
	if !client.Unreachable(err) {
		return ""
	}
	if errors.Is(err, os.ErrPermission) {
		return "; become root, or join the group polder"
	}
	if api.KindOf(err) == api.Unavailable {
		return "; start one with: polder serve, or a lab with: polder lab up (POLDER_HOST or `polder context` say which server is meant)"
	}
	return ""
}
