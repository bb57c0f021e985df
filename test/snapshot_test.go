//go:build scenario

package test

import (
	"strings"
	"testing"
	"time"

	"polder/api"
)

func snapshots(t *testing.T, of string) (tree string) {
	t.Helper()
	for _, s := range show[[]api.Snapshot](t, "snapshot", "list", of) {
		tree += " " + s.Parent + ">" + s.Name
		if s.Current {
			tree += "*"
		}
	}
	return strings.TrimSpace(tree)
}

// Snapshots of a container's disk: taken while it runs and while it does not, a tree, restored, deleted from the middle, expired.
func TestSnapshots(t *testing.T) {
	const name = "notes"
	launch(t, "debian/13", name)
	write := func(text string) {
		t.Helper()
		must(t, "exec", name, "--", "sh", "-c", "echo "+text+" >/root/text")
	}
	read := func() string { t.Helper(); return must(t, "exec", name, "--", "cat", "/root/text") }
	write("one")
	if s := show[api.Snapshot](t, "snapshot", "create", name, "one"); s.Name != "one" || s.Memory || !strings.Contains(s.How, "stood still") {
		t.Errorf("%+v", s)
	}
	write("two")
	must(t, "snapshot", "create", name, "two")
	write("three")
	refused(t, 4, "already", "snapshot", "create", name, "two")
	refused(t, 2, "snapshot name", "snapshot", "create", name, "Two")
	refused(t, 2, "whole seconds", "snapshot", "create", name, "x", "--expires", "1ms")
	refused(t, 1, "can't be taken", "snapshot", "create", name, "x", "--memory")
	refused(t, 3, "no snapshot", "snapshot", "restore", name, "x")
	refused(t, 3, "no snapshot", "snapshot", "delete", name, "x")
	refused(t, 3, "no such VE", "snapshot", "list", "nobody")
	refused(t, 4, "snapshots", "move", name, "--to", otherHost(t, name))

	must(t, "snapshot", "restore", name, "one") // it runs again
	if got := read(); got != "one" {
		t.Errorf("restored to one it has %q", got)
	}
	must(t, "stop", name)
	if s := show[api.Snapshot](t, "snapshot", "create", name, "branch"); s.Parent != "one" || s.How != "it was stopped" {
		t.Errorf("%+v", s)
	}
	if got := snapshots(t, name); got != ">one one>two one>branch*" {
		t.Errorf("the tree is %q", got)
	}
	must(t, "snapshot", "delete", name, "one") // from the middle
	if got := snapshots(t, name); got != ">two >branch*" {
		t.Errorf("the tree is %q", got)
	}
	must(t, "snapshot", "restore", name, "two")
	if v := show[api.VE](t, "info", name); v.State != api.Stopped {
		t.Errorf("a VE that was stopped is %s", v.State)
	}
	clonesOfSnapshot(t, name)
	must(t, "start", name)
	if got := read(); got != "two" {
		t.Errorf("restored to two it has %q", got)
	}
	must(t, "snapshot", "create", name, "brief", "--expires", "1s")
	refused(t, 1, "can't be taken", "snapshot", "schedule", name, "--every", "1h", "--keep", "24h", "--memory")
	must(t, "snapshot", "schedule", name, "--every", "1h", "--keep", "24h")
	refused(t, 2, "whole seconds", "launch", "debian/13", "mayfly", "--ttl", "1ms")
	launch(t, "debian/13", "mayfly", "--ttl", "1s")
	eventually(t, 2*time.Minute, func() string {
		if got := snapshots(t, name); strings.Contains(got, "brief") {
			return "its time is over: " + got
		} else if strings.Count(got, ">auto-") != 1 {
			return "of those that are taken by themselves there is: " + got
		}
		if r := polder(t.Context(), "info", "mayfly"); r.code != 3 {
			return "its time is over: " + r.out
		}
		return ""
	})

	must(t, "snapshot", "schedule", name, "--off")

	// The daemon is killed in the middle of a restore: it is carried on, or taken back.
	host := show[api.VE](t, "info", name).Host
	id := must(t, "snapshot", "restore", name, "branch", "--no-wait")
	must(t, "lab", "exec", host, "--", "pkill", "-9", "-f", "^polder serve")
	want := map[api.OperationState]string{api.OperationDone: "one", api.OperationFailed: "two"}[ended(t, id).State]
	if got := read(); got != want {
		t.Errorf("after all it has %q, want %q", got, want)
	}
	must(t, "delete", name)
	if left := must(t, "lab", "exec", host, "--", "sh", "-c", "ls /var/lib/polder/pools/default/volumes | grep -E 'snapshot|restore' || true"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// clonesOfSnapshot makes a VE of one of a VE's snapshots: it is as the VE was then, and has an identity of its own.
func clonesOfSnapshot(t *testing.T, name string) {
	t.Helper()
	refused(t, 3, "no snapshot", "clone", name, "past", "--snapshot", "nope")
	refused(t, 4, "without memory", "clone", name, "past", "--snapshot", "branch", "--live")
	deleteLater(t, "past")
	must(t, "clone", name, "past", "--snapshot", "branch", "--start")
	booted(t, "past", time.Minute)
	if got := must(t, "exec", "past", "--", "cat", "/root/text"); got != "one" {
		t.Errorf("a clone of branch has %q", got)
	}
	identities(t, "past")
}

// otherHost is one that a VE is not on.
func otherHost(t *testing.T, ve string) string {
	t.Helper()
	at := show[api.VE](t, "info", ve).Host
	for _, h := range hosts {
		if h != at {
			return h
		}
	}
	t.Fatal("there is one host only")
	return ""
}
