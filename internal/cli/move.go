package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

// moving are the flags of move.
type moving struct {
	to, from, mode string
	downtime       time.Duration
	bandwidth      rateFlag
	plan           bool
	waiting        waiting
}

func newMoveCommand(a *app) *cobra.Command {
	var m moving
	cmd := &cobra.Command{
		Use:   "move NAME… --to HOST | --all-from HOST",
		Short: "Move VEs to another host",
		Long: `Move VEs to another host, with their data, addresses and name, and where possible their memory and open connections.

  live  copied while it runs; it stands still for the last set only: an outage below a second
  warm  stands still, is copied, goes on: an outage as long as the copy
  cold  halted in order, copied, started again: its state is lost
  post-copy  live, and it goes on over there at once, its memory following (VMs): it is lost if either host dies meanwhile
  auto  the gentlest that keeps --max-downtime (or a second): it is refused rather than done otherwise

A move that fails or is cancelled (Ctrl-C) leaves the VE running where it was. The outage that is reported was seen from outside of the
VE. --plan says what would be done and what stands in the way.

--all-from moves all VEs off a host, each in its own way: to --to, or spread over the other hosts by their free memory. What can't be
moved is listed with the reason, and stays.`,
		Example: `  polder move web1 --to h2
  polder move web1 db --to h2 --max-downtime 300ms --bandwidth 500Mbit
  polder move db --to h2 --plan
  polder move --all-from h1`,
		Args:              args(0, -1),
		ValidArgsFunction: a.completeAll(a.veNames()),
		RunE: func(cmd *cobra.Command, names []string) error {
			req, err := m.request(names)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if m.from != "" {
				return a.moveAll(cmd.Context(), c, &m, req)
			}
			return a.moveNamed(cmd.Context(), c, &m, req, unique(names))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&m.to, "to", "", "`HOST` to move to")
	flags.StringVar(&m.from, "all-from", "", "move all VEs off this `HOST`")
	flags.StringVar(&m.mode, "mode", string(api.Auto), "`MODE`: auto, live, post-copy, warm or cold")
	flags.DurationVar(&m.downtime, "max-downtime", 0, "the longest outage wanted, such as 300ms: a move that is not expected to keep it is refused (`TIME`)")
	flags.Var(&m.bandwidth, "bandwidth", "the most that each move may send a second, such as 50MiB or 400Mbit")
	flags.BoolVar(&m.plan, "plan", false, "say what would be done, and do nothing")
	m.waiting.flags(cmd)
	completeWords(cmd, "mode", string(api.Auto), string(api.Live), string(api.PostCopy), string(api.Warm), string(api.Cold))
	must(cmd.RegisterFlagCompletionFunc("to", a.complete(a.hostNames)))
	must(cmd.RegisterFlagCompletionFunc("all-from", a.complete(a.hostNames)))
	return cmd
}

// request reads the flags; its To is empty where each VE is to have its own.
func (m *moving) request(names []string) (api.MoveRequest, error) {
	mode, err := api.ParseMoveMode(m.mode)
	switch {
	case err != nil:
		return api.MoveRequest{}, err
	case m.from == "" && len(names) == 0:
		return api.MoveRequest{}, api.Errorf(api.Invalid, "move: which VE? usage: polder move NAME… --to HOST, or polder move --all-from HOST")
	case m.from != "" && len(names) > 0:
		return api.MoveRequest{}, api.Errorf(api.Invalid, "move: give names, or --all-from, not both")
	case m.from == "" && m.to == "":
		return api.MoveRequest{}, api.Errorf(api.Invalid, "move: where to? name a host with --to; see: polder host list")
	case m.from != "" && m.from == m.to:
		return api.MoveRequest{}, api.Errorf(api.Invalid, "move: --all-from and --to are the same host")
	case m.downtime < 0 || m.downtime%time.Millisecond != 0:
		return api.MoveRequest{}, api.Errorf(api.Invalid, "--max-downtime %s: want whole milliseconds, such as 300ms", m.downtime)
	}
	for _, name := range names {
		if err := api.CheckName("ve", name); err != nil {
			return api.MoveRequest{}, err
		}
	}
	for _, name := range []string{m.to, m.from} {
		if name == "" {
			continue
		}
		if err := api.CheckName("host", name); err != nil {
			return api.MoveRequest{}, err
		}
	}
	return api.MoveRequest{To: m.to, Mode: mode, MaxDowntimeMS: m.downtime.Milliseconds(), BandwidthBytes: api.Bytes(m.bandwidth)}, nil
}

// moveNamed moves, or plans for, the VEs that were named.
func (a *app) moveNamed(ctx context.Context, c *client.Client, m *moving, req api.MoveRequest, names []string) error {
	if !m.plan {
		var moves []planned
		for _, name := range names {
			moves = append(moves, planned{name, req})
		}
		return a.moveThem(ctx, c, m.waiting.wanted(), moves)
	}
	var plans []api.MovePlan
	for _, name := range names {
		plan, err := c.PlanMove(ctx, name, req)
		if err != nil {
			return err
		}
		plans = append(plans, plan)
	}
	return a.show(oneOrAll(plans, len(names)), func(w io.Writer) { writePlans(w, plans) })
}

// planned is one move to be made.
type planned struct {
	ve  string
	req api.MoveRequest
}

// moved is how one went.
type moved struct {
	VE string `json:"ve"`
	api.MoveResult
}

// moveThem runs moves side by side, and shows how they went.
func (a *app) moveThem(ctx context.Context, c *client.Client, wait bool, moves []planned) error {
	var starters []starter
	for _, p := range moves {
		starters = append(starters, starter{"move " + p.ve, func(ctx context.Context) (api.Operation, error) { return c.Move(ctx, p.ve, p.req) }})
	}
	endings := a.run(ctx, c, wait, starters...)
	if !wait {
		ops := operations(endings)
		err := a.show(oneOrAll(ops, len(moves)), func(out io.Writer) {
			for _, op := range ops {
				fmt.Fprintln(out, op.ID)
			}
		})
		return errors.Join(a.failures(endings), err)
	}
	results := []moved{}
	for i, e := range endings {
		if e.err != nil || e.op.State != api.OperationDone {
			continue
		}
		r := moved{VE: moves[i].ve}
		if err := json.Unmarshal(e.op.Result, &r.MoveResult); err != nil {
			return api.Errorf(api.Internal, "move %s: read the result: %w", r.VE, err)
		}
		results = append(results, r)
	}
	var err error
	if len(results) > 0 || len(moves) > 1 {
		err = a.show(oneOrAll(results, len(moves)), func(w io.Writer) { writeMoved(w, results) })
	}
	if failed := a.failures(endings); failed != nil {
		return failed
	}
	return err
}

// oneOrAll is what JSON shows: the thing itself where one was asked for, else an array.
func oneOrAll[T any](things []T, asked int) any {
	if asked == 1 && len(things) == 1 {
		return things[0]
	}
	return things
}

func writeMoved(w io.Writer, results []moved) {
	if len(results) == 0 {
		return
	}
	t := newTable("VE", "FROM", "TO", "MODE", "OUTAGE", "TOTAL", "TRANSFERRED", "STATE", "REASON")
	for _, r := range results {
		state := "lost"
		if r.StateKept {
			state = "kept"
		}
		t.row(r.VE, r.From, r.To, string(r.Mode), outageText(r.MoveResult), millis(r.TotalMS), r.TransferredBytes.String(), state, r.Reason)
	}
	t.write(w)
}

// outageText is the outage that was seen, if anybody would have missed it.
func outageText(m api.MoveResult) string {
	if m.OutageMS < 0 {
		return "not seen"
	}
	return millis(m.OutageMS)
}

func writePlans(w io.Writer, plans []api.MovePlan) {
	t := newTable("VE", "FROM", "TO", "MODE", "POSSIBLE", "OUTAGE", "TOTAL", "BYTES", "REASON")
	for _, p := range plans {
		possible, outage, total, size := "yes", "~"+millis(p.OutageMS), "~"+millis(p.TotalMS), "~"+p.Bytes.String()
		if p.OutageMS == 0 {
			outage = "none"
		}
		if !p.Possible {
			possible, outage, total, size = "no", "", "", ""
		}
		t.row(p.VE, p.From, p.To, string(p.Mode), possible, outage, total, size, p.Reason)
	}
	t.write(w)
	for _, p := range plans {
		writeObstacles(w, p)
	}
}

// writeObstacles lists what stands in the way of a VE, and what would help.
func writeObstacles(w io.Writer, p api.MovePlan) {
	if len(p.Blockers) > 0 {
		fmt.Fprintf(w, "\nIn the way of %s:\n", p.VE)
		t := newTable("  PROCESS", "PID", "WHAT", "REASON", "REMEDY", "MODE LEFT")
		for _, b := range p.Blockers {
			pid, left := "", string(b.Except)
			if b.PID > 0 {
				pid = strconv.Itoa(b.PID)
			}
			if left == "" {
				left = "none"
			}
			process := b.Process
			if process == "" {
				process = "-"
			}
			t.row("  "+process, pid, b.Descriptor, b.Reason, b.Remedy, left)
		}
		t.write(w)
	}
	if !p.Possible && p.Remedy != "" {
		fmt.Fprintf(w, "\n%s: what would help: %s\n", p.VE, printable(p.Remedy))
	}
}

func millis(n int64) string { return took(time.Duration(n) * time.Millisecond) }

// unique keeps the first of equal names.
func unique(names []string) []string {
	var kept []string
	for _, name := range names {
		if !slices.Contains(kept, name) {
			kept = append(kept, name)
		}
	}
	return kept
}

// rateFlag is a flag with an amount of bytes a second.
type rateFlag api.Bytes

// String prints the flag's value; the zero value is no limit.
func (r *rateFlag) String() string {
	if *r == 0 {
		return ""
	}
	return api.Bytes(*r).String() + "/s"
}

// Set reads bytes, as everywhere, or bits as links are sold: 400Mbit, 1Gbit, of a thousand each.
func (r *rateFlag) Set(text string) error {
	word := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimSpace(text), "/s"), "ps"))
	for unit, size := range map[string]float64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9} {
		digits, ok := strings.CutSuffix(word, unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || !(n > 0) || n*size/8 >= math.MaxInt64 {
			return fmt.Errorf("rate %q: want a number, such as 400Mbit", text)
		}
		*r = rateFlag(max(1, n*size/8))
		return nil
	}
	n, err := api.ParseBytes(word)
	if err == nil && n == 0 {
		err = errors.New("want more than nothing")
	}
	*r = rateFlag(n)
	return err
}

// Type names the flag's value in the help text.
func (r *rateFlag) Type() string { return "RATE" }
