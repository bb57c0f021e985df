package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
)

func newInfoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "info NAME",
		Short:             "Show all about a VE: addresses, limits, what it can do and what not",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeFirst(a.veNames()),
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := api.CheckName("ve", names[0]); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ve, err := c.VE(cmd.Context(), names[0])
			if err != nil {
				return err
			}
			return a.show(ve, func(w io.Writer) { writeVE(w, ve) })
		},
	}
}

func writeVE(w io.Writer, ve api.VE) {
	f := newFields()
	f.add("Name", ve.Name)
	f.add("Model", veModel(ve))
	f.add("State", veState(ve))
	f.add("Reason", ve.Reason)
	f.add("Host", veHost(ve))
	f.add("Image", ve.Image)
	f.add("Digest", ve.ImageDigest)
	f.add("ID", ve.ID)
	f.add("CPUs", strconv.Itoa(ve.CPUs))
	f.add("Memory", ve.MemoryBytes.String())
	f.add("Disk", fmt.Sprintf("%s in pool %s", ve.DiskBytes, ve.Pool))
	f.add("Restart", veRestart(ve))
	f.add("Created", moment(ve.CreatedAt))
	if ve.Schedule != nil {
		f.add("Snapshots", scheduleText(ve.Schedule))
	}
	if ve.ExpiresAt != nil {
		f.add("Deleted", moment(*ve.ExpiresAt)+", by itself")
	}
	f.add("Labels", labelText(ve.Labels))
	f.write(w)
	if len(ve.Addresses) > 0 {
		fmt.Fprintln(w, "\nAddresses:")
		t := newTable("  NETWORK", "MAC", "ADDRESS")
		for _, entry := range ve.Addresses {
			t.row("  "+entry.Network, entry.MAC, entry.Address)
		}
		t.write(w)
	}
	writeCapabilities(w, ve.Capability)
}

// writeCapabilities shows what is there, what only in part, what not, and what mends it.
func writeCapabilities(w io.Writer, list []api.Capability) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(w, "\nCapabilities:")
	t := newTable("  NAME", "LEVEL", "DETAIL")
	for _, c := range list {
		detail := c.Detail
		if c.Remedy != "" {
			detail += "; to mend: " + c.Remedy
		}
		t.row("  "+c.Name, string(c.Level), detail)
	}
	t.write(w)
}

func veModel(ve api.VE) string {
	var more []string
	if ve.Accelerator != "" {
		more = append(more, "accelerator "+ve.Accelerator)
	}
	if ve.Firmware != "" {
		more = append(more, "firmware "+string(ve.Firmware))
	}
	if len(more) == 0 {
		return string(ve.Model)
	}
	return string(ve.Model) + " (" + strings.Join(more, ", ") + ")"
}

func veState(ve api.VE) string {
	text := string(ve.State)
	if ve.PID != 0 {
		text += fmt.Sprintf(", pid %d", ve.PID)
	}
	if ve.StartedAt != nil && ve.PID != 0 {
		text += ", since " + moment(*ve.StartedAt)
	}
	return text
}

func veRestart(ve api.VE) string {
	text := string(ve.Restart)
	if ve.Restarts > 0 {
		text += fmt.Sprintf(" (%d since the last start by hand)", ve.Restarts)
	}
	if ve.Ephemeral {
		text += "; deleted when it stops"
	}
	return text
}

func labelText(labels map[string]string) string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, key+"="+labels[key])
	}
	return strings.Join(pairs, ", ")
}

// hasLabel matches K=V, or K with any value.
func hasLabel(ve api.VE, want string) bool {
	key, value, exact := strings.Cut(want, "=")
	got, ok := ve.Labels[key]
	return ok && (!exact || got == value)
}

// moment prints a time with its age.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05") + " (" + age(time.Since(t)) + " ago)"
}

// age prints a duration roughly.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// fields prints "Name:  value" lines, aligned. Empty values are left out.
type fields struct{ pairs [][2]string }

func newFields() *fields { return &fields{} }

func (f *fields) add(name, value string) {
	if value != "" {
		f.pairs = append(f.pairs, [2]string{name, value})
	}
}

func (f *fields) write(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, p := range f.pairs {
		fmt.Fprintf(tw, "%s:\t%s\n", p[0], printable(p[1]))
	}
	tw.Flush()
}
