package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"sigs.k8s.io/yaml"

	"polder/api"
)

// format is how things are shown: the value of -o. The zero value is a table.
type format string

const (
	asTable format = ""
	asJSON  format = "json"
	asYAML  format = "yaml"
)

// String is the flag's value.
func (f *format) String() string {
	if *f == asTable {
		return "table"
	}
	return string(*f)
}

// Set reads the flag.
func (f *format) Set(s string) error {
	switch s {
	case "table":
		*f = asTable
	case "json", "yaml":
		*f = format(s)
	default:
		return fmt.Errorf("%q: want table, json or yaml", s)
	}
	return nil
}

// Type names the flag's value in the help text.
func (f *format) Type() string { return "FORMAT" }

// show prints v, which is one of the API's own types or a list of them: as it is for JSON and YAML, else by text.
func (a *app) show(v any, text func(w io.Writer)) error {
	var out bytes.Buffer
	switch a.output {
	case asTable:
		text(&out)
	case asJSON:
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return api.Errorf(api.Internal, "encode output: %w", err)
		}
	case asYAML:
		data, err := yaml.Marshal(v)
		if err != nil {
			return api.Errorf(api.Internal, "encode output: %w", err)
		}
		out.Write(data)
	}
	if _, err := a.stdout.Write(out.Bytes()); err != nil {
		return api.Errorf(api.Internal, "write output: %w", err)
	}
	return nil
}

// table collects rows and prints them aligned.
type table struct{ rows [][]string }

// newTable starts a table with its column titles.
func newTable(titles ...string) *table { return &table{rows: [][]string{titles}} }

// row adds one row. An empty cell is shown as "-".
func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range t.rows {
		for i, cell := range row {
			if i > 0 {
				io.WriteString(tw, "\t")
			}
			if cell == "" {
				cell = "-"
			}
			io.WriteString(tw, printable(cell))
		}
		io.WriteString(tw, "\n")
	}
	tw.Flush()
}

// printable replaces what would move the cursor or break a row: labels and reasons come from other people's programs.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
