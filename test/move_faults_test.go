//go:build scenario

package test

import (
	"context"
	"testing"
	"time"

	"polder/api"
)

// A move that is refused, called off or cut off, in whatever way, leaves the VE as it was at its host and nothing at the other.
func TestFaultsOfMoves(t *testing.T) {
	whole(t)
	const name = "faulty"
	launch(t, "debian/13", name, "--host", "h1")
	booted(t, name, time.Minute)
	refused(t, 3, "not found", "move", name, "--to", "h9")
	refused(t, 3, "no such VE", "move", "nobody", "--to", "h2")
	refused(t, 4, "already", "move", name, "--to", "h1")
	refused(t, 2, "--to", "move", name)

	// Called off while it halts for a cold move, it halts and is started again: what it was told can't be taken back.
	must(t, "exec", name, "--", "systemd-run", "--unit=slow", "--property=ExecStop=sleep 3", "sleep", "infinity")
	m := begin(t, "move", name, "--to", "h2", "--mode", "cold")
	eventually(t, 30*time.Second, func() string {
		if state := show[api.VE](t, "info", name).State; state != api.Stopping {
			return "the VE is " + string(state)
		}
		return ""
	})
	m.interrupt()
	complains(t, m.end(), 5, "cancelled", "move", name)
	must(t, "exec", name, "--", "test", "!", "-e", "/run/systemd/transient/slow.service")
	booted(t, name, time.Minute)
	leftNothing(t, "h2", name)

	count(t, name)
	must(t, "exec", name, "--", "dd", "if=/dev/urandom", "of=/root/noise", "bs=1M", "count=200", "status=none")
	must(t, "lab", "shape", "h1", "--rate", "200mbit") // some ten seconds, to do something to the move
	t.Cleanup(func() { polder(context.Background(), "lab", "shape", "h1", "--clear") })
	n := 0
	disturb := func(code int, text string, do func()) {
		t.Helper()
		n = counted(t, name, n)
		m := begin(t, "move", name, "--to", "h2", "--mode", "warm")
		underWay(t, "move", "copy")
		do()
		complains(t, m.end(), code, text, "move", name)
		n = counted(t, name, n)
	}
	disturb(5, "cancelled", func() {
		refused(t, 4, "is busy", "move", name, "--to", "h3")
		refused(t, 4, "is busy", "stop", name)
		refused(t, 4, "is busy", "delete", name, "--force")
		must(t, "op", "cancel", underWay(t, "move", "copy").ID)
	})
	leftNothing(t, "h2", name)
	// Whichever of them leads the store, the third one still hears both: either host answers as long as the cut lasts.
	disturb(1, "", func() { must(t, "lab", "cut", "h1", "h2") })
	t.Cleanup(func() { polder(context.Background(), "lab", "heal", "h1", "h2") })
	for _, host := range hosts {
		if r := through(t.Context(), host, "info", name); r.code != 0 {
			t.Errorf("info %s of %s while h1 and h2 don't hear each other: exit %d, %s", name, host, r.code, r.err)
		}
	}
	must(t, "lab", "heal", "h1", "h2")
	whole(t)
	leftNothing(t, "h2", name)
	disturb(1, "is full", func() {
		must(t, "lab", "exec", "h2", "--", "sh", "-c", `cd /var/lib/polder/pools/default
			fallocate -l $(($(df --output=avail -B1 . | tail -1) - 120 * 1024 * 1024)) filler`)
	})
	// Btrfs counts the room as free once it has written that down.
	must(t, "lab", "exec", "h2", "--", "sh", "-c", "rm /var/lib/polder/pools/default/filler && sync")
	leftNothing(t, "h2", name)

	// A host that was dead when the move was called off, and when the VE was deleted, clears its half away all the same.
	disturb(1, `host "h2"`, func() { must(t, "lab", "kill", "h2") })
	id := show[struct{ ID string }](t, "info", name).ID
	must(t, "delete", name, "--force")
	must(t, "lab", "start", "h2")
	whole(t)
	eventually(t, 30*time.Second, func() string {
		return polder(t.Context(), "lab", "exec", "h2", "--", "sh", "-c",
			`ls -d /var/lib/polder/ve/$0 /var/lib/polder/pools/default/volumes/$0 /sys/fs/cgroup/polder/$1 2>/dev/null`, id, name).out
	})
}
