package cli

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

// askTime bounds requests that are made although the user has asked to stop.
const askTime = 10 * time.Second

// waiting adds --wait and --no-wait to a command that starts operations.
type waiting struct{ wait, noWait bool }

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.wait, "wait", true, "wait for the end of the operation")
	cmd.Flags().BoolVar(&w.noWait, "no-wait", false, "print the operation's id instead of waiting")
}

func (w *waiting) wanted() bool { return w.wait && !w.noWait }

// starter starts one operation.
type starter struct {
	title string // "launch c1"
	start func(ctx context.Context) (api.Operation, error)
}

// ending is how one operation went.
type ending struct {
	op  api.Operation
	err error
}

// run starts operations side by side and, if wanted, follows each to its end.
func (a *app) run(ctx context.Context, c *client.Client, wait bool, starters ...starter) []ending {
	p := a.newProgress()
	defer p.close()
	endings := make([]ending, len(starters))
	var all sync.WaitGroup
	for i, s := range starters {
		all.Go(func() {
			op, err := startAnyway(ctx, s)
			if err == nil && wait {
				op, err = a.follow(ctx, c, p.track(s.title), op)
			}
			endings[i] = ending{op, err}
		})
	}
	all.Wait()
	return endings
}

// startAnyway starts an operation without heeding an interrupt: cut off here, nobody would know whether the server has
// begun, nor be able to cancel it.
func startAnyway(ctx context.Context, s starter) (api.Operation, error) {
	if ctx.Err() != nil {
		return api.Operation{}, api.Errorf(api.Cancelled, "%s: cancelled before it began", s.title)
	}
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return s.start(asking)
}

// follow waits for the end of an operation. When ctx is done (Ctrl-C), it asks the server to cancel the operation and
// goes on waiting for what comes of it. An operation that did not succeed is an error.
func (a *app) follow(ctx context.Context, c *client.Client, t *tracker, op api.Operation) (api.Operation, error) {
	waitCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var asking sync.WaitGroup
	asking.Go(func() {
		select {
		case <-ctx.Done():
			a.askToCancel(waitCtx, c, t, op.ID)
		case <-waitCtx.Done():
		}
	})
	last, err := c.Wait(waitCtx, op.ID, t.operation)
	stop()
	asking.Wait()
	if err != nil {
		t.done("")
		return op, api.Errorf(api.KindOf(err), "%s: %w; it may go on, see: polder op info %s", t.title, err, op.ID)
	}
	t.operation(last)
	t.done(summary(last))
	return last, outcome(t.title, last)
}

func (a *app) askToCancel(ctx context.Context, c *client.Client, t *tracker, id string) {
	t.p.returnCursor()
	t.p.line("%s: cancelling (once more Ctrl-C leaves at once)", t.title)
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if err := c.CancelOperation(ctx, id); err != nil && ctx.Err() == nil {
		t.p.line("%s: not cancelled: %v", t.title, err)
	}
}

// afterwards is for a look at what an operation made: it may have succeeded although the user asked it to stop.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), askTime)
}

// outcome is the error of an operation that did not succeed.
func outcome(title string, op api.Operation) error {
	switch op.State {
	case api.OperationCancelled:
		return api.Errorf(api.Cancelled, "%s: cancelled", title)
	case api.OperationFailed:
		err := op.Error.Err()
		if err == nil {
			err = api.Errorf(api.Internal, "operation %s failed and does not say why", op.ID)
		}
		_, target, _ := strings.Cut(op.Target, "/")
		if target != "" && strings.Contains(err.Error(), target) {
			return err
		}
		return api.Errorf(api.KindOf(err), "%s: %w", title, err)
	default:
		return nil
	}
}

// failures prints the errors of several operations, one a line, and ends with the exit code of the first.
func (a *app) failures(endings []ending) error {
	var failed []error
	for _, e := range endings {
		if e.err != nil {
			failed = append(failed, e.err)
		}
	}
	if len(failed) < 2 {
		for _, err := range failed {
			return err
		}
		return nil
	}
	for _, err := range failed {
		a.complain(err)
	}
	return exitStatus(api.KindOf(failed[0]).ExitCode())
}

// operations are those that were started.
func operations(endings []ending) []api.Operation {
	ops := []api.Operation{}
	for _, e := range endings {
		if e.op.ID != "" {
			ops = append(ops, e.op)
		}
	}
	return ops
}
