package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// report collects rows, and lines that explain them.
type report struct {
	began    time.Time
	machine  []string
	sections []*section
}

// section has rows, or a table with columns of its own.
type section struct {
	title   string
	rows    []row
	columns []string
	cells   [][]string
	notes   []string
}

// row compares what Polder scored with one peer; without a peer it stands for itself.
type row struct {
	what, unit string
	ours       sample
	peer       string
	theirs     sample
	aim        aim
}

// aim is what was to be reached, and whether it was; empty: there is none for this row.
type aim struct {
	text string
	met  bool
}

// atMost asks that ours is no more than theirs divided by factor.
func atMost(text string, ours, theirs sample, factor float64) aim {
	return aim{text, ours.median()*factor <= theirs.median()}
}

// below asks that ours is less than limit.
func below(text string, ours sample, limit float64) aim {
	return aim{"< " + text, ours.median() < limit}
}

func (a aim) String() string {
	switch {
	case a.text == "":
		return ""
	case a.met:
		return a.text + ": met"
	}
	return a.text + ": **missed**"
}

// ratio of ours to theirs, the smaller the better, as a fraction or a multiple.
func (r row) ratio() string {
	if len(r.theirs) == 0 {
		return ""
	}
	if q := r.ours.median() / r.theirs.median(); q >= 1 {
		return fmt.Sprintf("%.2f", q)
	} else if q > 0 {
		return fmt.Sprintf("1/%.1f", 1/q)
	}
	return ""
}

func (r row) String() string {
	theirs, n := "", fmt.Sprint(len(r.ours))
	if len(r.theirs) > 0 {
		theirs = r.theirs.String()
		if len(r.theirs) != len(r.ours) {
			n += fmt.Sprintf(" / %d", len(r.theirs))
		}
	}
	return line([]string{r.what, r.unit, r.ours.String(), r.peer, theirs, r.ratio(), r.aim.String(), n})
}

// line of a table.
func line(cells []string) string { return "| " + strings.Join(cells, " | ") + " |" }

func (r *report) section(title string) *section {
	s := &section{title: title}
	r.sections = append(r.sections, s)
	return s
}

func (s *section) add(r row) { s.rows = append(s.rows, r) }

func (s *section) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Medians (least–most). %s, %.0f minutes.\n\n", r.began.UTC().Format("2006-01-02 15:04 MST"), time.Since(r.began).Minutes())
	for _, line := range r.machine {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	for _, s := range r.sections {
		columns := s.columns
		if columns == nil {
			columns = []string{"what", "unit", "Polder", "peer", "its", "ratio", "aim", "n"}
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s\n|%s\n", s.title, line(columns), strings.Repeat("---|", len(columns)))
		for _, row := range s.rows {
			fmt.Fprintln(&b, row)
		}
		for _, cells := range s.cells {
			fmt.Fprintln(&b, line(cells))
		}
		if len(s.notes) > 0 {
			fmt.Fprintln(&b)
		}
		for _, note := range s.notes {
			fmt.Fprintf(&b, "- %s\n", note)
		}
	}
	return b.String()
}

// write prints the report, or replaces a part of a file of results; the rest of it is written by people, or another part.
func (r *report) write(path, part string) error {
	if path == "" {
		fmt.Print("\n", r)
		return nil
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	begin, end := "<!-- "+part+": written by bench -->\n", "<!-- end of "+part+" -->\n"
	before, rest, found := strings.Cut(string(old), begin)
	if !found {
		before, rest = string(old), ""
	}
	_, after, _ := strings.Cut(rest, end)
	return os.WriteFile(path, []byte(before+begin+r.String()+end+after), 0o644)
}
