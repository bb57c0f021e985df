package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// The marks around the table in a file of results; the rest of it is written by people.
const (
	tableBegin = "<!-- services: written by bench/services -->\n"
	tableEnd   = "<!-- end of services -->\n"
	tableHead  = "| service | model | kept | outage, there and back | total | transferred | done meanwhile | load | when |\n" +
		"|---|---|---|---|---|---|---|---|---|\n"
)

// String is the outcome's line in the table.
func (o outcome) String() string {
	var outages, totals, sizes []string
	for _, m := range o.moves {
		outage := "not seen"
		if m.OutageMS >= 0 {
			outage = fmt.Sprintf("%d ms", m.OutageMS)
		}
		outages = append(outages, outage)
		totals = append(totals, fmt.Sprintf("%.1f s", float64(m.TotalMS)/1000))
		sizes = append(sizes, m.TransferredBytes.String())
	}
	kept := "kept"
	if o.wrong != nil {
		kept = "**broke**: " + strings.ReplaceAll(strings.ReplaceAll(o.wrong.Error(), "\n", " "), "|", "/")
	}
	return o.key() + strings.Join([]string{
		kept, strings.Join(outages, ", "), strings.Join(totals, ", "), strings.Join(sizes, ", "), o.done, strings.Join(o.loads, ", "),
		time.Now().UTC().Format("01-02 15:04"),
	}, " | ") + " |"
}

// key is what the lines of one service and model begin with.
func (o outcome) key() string { return fmt.Sprintf("| %s | %s | ", o.service.what, o.model) }

// write prints an outcome's line, or puts it into the table of a file, instead of that of the same service and model.
func write(path string, o outcome) error {
	if path == "" {
		fmt.Println(o)
		return nil
	}
	fmt.Fprintln(os.Stderr, o)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), tableBegin)
	if !found {
		return fmt.Errorf("%s has no line %q", path, strings.TrimSpace(tableBegin))
	}
	table, after, _ := strings.Cut(rest, tableEnd)
	return os.WriteFile(path, []byte(before+tableBegin+tableHead+merge(table, o)+tableEnd+after), 0o644)
}

// merge keeps the order: containers before VMs, services as they are listed.
func merge(table string, o outcome) string {
	var merged strings.Builder
	for _, model := range []string{"container", "vm"} {
		for _, v := range services {
			key := outcome{service: v, model: model}.key()
			line := ""
			if key == o.key() {
				line = o.String() + "\n"
			} else {
				for old := range strings.Lines(table) {
					if strings.HasPrefix(old, key) {
						line = old
					}
				}
			}
			merged.WriteString(line)
		}
	}
	return merged.String()
}
