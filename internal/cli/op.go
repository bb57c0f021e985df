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

func newOpCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "op", Short: "Operations: what is going on, and how it went"})
	c.AddCommand(newOpListCommand(a), newOpInfoCommand(a), newOpWatchCommand(a), newOpCancelCommand(a))
	return c
}

func newOpListCommand(a *app) *cobra.Command {
	columns := []string{"ID", "KIND", "TARGET", "STATE", "STEP", "HOST", "AGE", "TOOK"}
	return newThingList(a, "List operations, newest first", (*client.Client).Operations, columns, func(op api.Operation) []string {
		took := took(op.UpdatedAt.Sub(op.CreatedAt))
		if !op.State.Final() {
			took = ""
		}
		return []string{op.ID, op.Kind, op.Target, string(op.State), op.Step, op.Host, age(time.Since(op.CreatedAt)), took}
	})
}

func newOpInfoCommand(a *app) *cobra.Command {
	return newThingInfo(a, "info ID", "Show an operation with its steps", a.operationIDs, (*client.Client).Operation, writeOperation)
}

func writeOperation(w io.Writer, op api.Operation) {
	f := newFields()
	f.add("ID", op.ID)
	f.add("Kind", op.Kind)
	f.add("Target", op.Target)
	f.add("Host", op.Host)
	f.add("State", string(op.State))
	if op.Progress != nil && !op.State.Final() {
		f.add("Progress", op.Step+" "+amount(*op.Progress))
	}
	if op.Error != nil {
		f.add("Error", op.Error.Detail)
	}
	if !op.State.Final() {
		cancellable := "no: it is past the point of no return"
		if op.Cancellable {
			cancellable = "yes"
		}
		f.add("Cancellable", cancellable)
	}
	f.add("Created", moment(op.CreatedAt))
	f.add("Updated", moment(op.UpdatedAt))
	addMove(f, op)
	f.write(w)
	if len(op.Steps) == 0 {
		return
	}
	fmt.Fprintln(w, "\nSteps:")
	t := newTable("  STEP", "STATE", "TOOK")
	for _, step := range op.Steps {
		state := "to do"
		switch {
		case step.Undone:
			state = "undone"
		case step.FinishedAt != nil:
			state = "done"
		case step.StartedAt != nil && !op.State.Final():
			state = "running"
		case step.StartedAt != nil:
			state = "failed"
		}
		t.row("  "+step.Name, state, stepTook(step))
	}
	t.write(w)
}

// addMove tells what came of a move.
func addMove(f *fields, op api.Operation) {
	var m api.MoveResult
	if op.Kind != "move" || json.Unmarshal(op.Result, &m) != nil || m.Mode == "" {
		return
	}
	f.add("Moved", fmt.Sprintf("%s, from %s to %s", m.Mode, m.From, m.To))
	f.add("Outage", outageText(m))
	f.add("Sent", m.TransferredBytes.String())
	f.add("Reason", m.Reason)
}

func newOpWatchCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "watch ID",
		Short:             "Follow an operation to its end; Ctrl-C stops watching, not the operation",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.operationIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			op, err := a.watch(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.show(op, func(io.Writer) {}); err != nil {
				return err
			}
			return outcome(op.Kind+" "+op.Target, op)
		},
	}
}

func (a *app) watch(ctx context.Context, id string) (api.Operation, error) {
	c, err := a.client()
	if err != nil {
		return api.Operation{}, err
	}
	op, err := c.Operation(ctx, id)
	if err != nil {
		return op, err
	}
	p := a.newProgress()
	defer p.close()
	t := p.track(op.Kind + " " + op.Target)
	op, err = c.Wait(ctx, id, t.operation)
	if err != nil {
		t.done("")
		return op, err
	}
	t.done(summary(op))
	return op, nil
}

func newOpCancelCommand(a *app) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:               "cancel ID",
		Short:             "Stop an operation and undo what it did",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.operationIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.CancelOperation(cmd.Context(), args[0]); err != nil {
				return err
			}
			if !w.wanted() {
				return nil
			}
			op, err := a.watch(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if op.State == api.OperationDone {
				return api.Errorf(api.Precondition, "operation %s had ended before it could be cancelled", op.ID)
			}
			return a.show(op, func(io.Writer) {})
		},
	}
	w.flags(cmd)
	return cmd
}
