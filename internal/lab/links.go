package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"polder/api"
	"polder/internal/command"
)

// Cut cuts the cable between a host and the switch: the host's own link goes down.
func (l *Lab) Cut(ctx context.Context, name string) error {
	return l.change(name, func(n int) error {
		if err := l.setCable(n, false); err != nil {
			return err
		}
		return l.setCarrier(ctx, n, false)
	})
}

// CutBetween makes the switch lose everything that two hosts send to each other; both reach all others.
func (l *Lab) CutBetween(ctx context.Context, a, b string) error {
	pair, err := l.pair(a, b)
	if err != nil {
		return err
	}
	return l.changeLinks(ctx, a, func(r *record) error {
		if !slices.Contains(r.Cuts, pair) {
			r.Cuts = append(r.Cuts, pair)
		}
		return nil
	})
}

// Heal mends what Cut and CutBetween cut of a host.
func (l *Lab) Heal(ctx context.Context, name string) error {
	n, err := l.number(name)
	if err != nil {
		return err
	}
	return l.changeLinks(ctx, name, func(r *record) error {
		r.Cuts = slices.DeleteFunc(r.Cuts, func(p [2]string) bool { return slices.Contains(p[:], name) })
		if err := l.setCable(n, true); err != nil {
			return err
		}
		return l.setCarrier(ctx, n, true)
	})
}

func (l *Lab) setCarrier(ctx context.Context, n int, up bool) error {
	r, err := l.readRecord()
	if err != nil {
		return err
	}
	return l.backend(r).setCarrier(ctx, n, up)
}

// HealBetween mends what CutBetween cut.
func (l *Lab) HealBetween(ctx context.Context, a, b string) error {
	pair, err := l.pair(a, b)
	if err != nil {
		return err
	}
	return l.changeLinks(ctx, a, func(r *record) error {
		r.Cuts = slices.DeleteFunc(r.Cuts, func(p [2]string) bool { return p == pair })
		return nil
	})
}

// pair names two hosts always in the same order.
func (l *Lab) pair(a, b string) ([2]string, error) {
	for _, name := range []string{a, b} {
		if _, err := l.number(name); err != nil {
			return [2]string{}, err
		}
	}
	if a == b {
		return [2]string{}, api.Errorf(api.Invalid, "cut between lab hosts: %s and %s are the same", a, b)
	}
	return [2]string{min(a, b), max(a, b)}, nil
}

// changeLinks runs f on the lab's record, and makes the switch's rules and the record on disk what it left. When f fails
// they stay as they were.
func (l *Lab) changeLinks(ctx context.Context, name string, f func(*record) error) error {
	return l.change(name, func(int) error {
		r, err := l.readRecord()
		if err != nil {
			return err
		}
		if r == nil || !l.switchThere() {
			return api.Errorf(api.Precondition, "the lab has no switch: it was not made to its end, or the machine was booted since; see: polder lab up")
		}
		if err := f(r); err != nil {
			return err
		}
		if err := l.writeRecord(r); err != nil {
			return err
		}
		return l.setLinkRules(ctx, r)
	})
}

// cutFrom are the hosts that one was cut from, one by one.
func (r *record) cutFrom(name string) []string {
	var list []string
	for _, p := range r.Cuts {
		switch name {
		case p[0]:
			list = append(list, p[1])
		case p[1]:
			list = append(list, p[0])
		}
	}
	return list
}

// setLinkRules makes the switch lose what the record says.
func (l *Lab) setLinkRules(ctx context.Context, r *record) error {
	nft, err := l.tool(command.Command{
		Name: "nsenter", Args: []string{"--net=" + l.path(switchFile), "nft", "-f", "-"}, Stdin: strings.NewReader(rulesOfLinks(r)),
	})
	if err == nil {
		_, err = nft.Run(ctx)
	}
	if err != nil {
		return fmt.Errorf("set the rules of the lab's switch: %w", err)
	}
	return nil
}

// rulesOfLinks are for nft -f in the switch's namespace: they replace those that are there.
func rulesOfLinks(r *record) string {
	var b strings.Builder
	b.WriteString("table bridge links\ndelete table bridge links\n")
	var rules []string
	for _, p := range r.Cuts {
		rules = append(rules, fmt.Sprintf("iifname %q oifname %q drop", p[0], p[1]), fmt.Sprintf("iifname %q oifname %q drop", p[1], p[0]))
	}
	for n := 1; n <= MaxHosts; n++ {
		name := nameOf(n)
		if lost := int(r.Shapes[name].LossPercent * 10_000); lost > 0 {
			for _, side := range []string{"iifname", "oifname"} {
				rules = append(rules, fmt.Sprintf("%s %q numgen random mod 1000000 <= %d drop", side, name, lost-1))
			}
		}
	}
	if len(rules) == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "table bridge links {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy accept;\n\t\t%s\n\t}\n}\n", strings.Join(rules, "\n\t\t"))
	return b.String()
}
