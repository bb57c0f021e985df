package cli

import (
	"bytes"
	"testing"
	"time"

	"polder/api"
)

func TestTableKeepsRowsWhole(t *testing.T) {
	tab := newTable("NAME", "TEXT")
	tab.row("c1", "evil\x1b[2J\nrow\ttab")
	tab.row("c2", "")
	tab.row("ä", "ü")
	var out bytes.Buffer
	tab.write(&out)
	want := "NAME  TEXT\nc1    evil?[2J?row?tab\nc2    -\nä     ü\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestInfoShowsEverything(t *testing.T) {
	var out bytes.Buffer
	writeVE(&out, api.VE{
		Name: "v1", Model: api.VM, State: api.Failed, Reason: "qemu: exit status 1: no room", Host: "h1", Image: "debian/13", ImageDigest: "sha256:ab",
		ID: "id", CPUs: 2, MemoryBytes: api.GiB, DiskBytes: 10 * api.GiB, Pool: "fast", Restart: api.RestartAlways, Restarts: 3, Ephemeral: true,
		Firmware: api.UEFI, Accelerator: "tcg", Labels: map[string]string{"b": "2", "a": "1"},
		Addresses:  []api.Address{{Network: "default", MAC: "52:54:00:00:00:01", Address: "fd00::5/64"}},
		Capability: []api.Capability{{Name: "live move", Level: api.Missing, Detail: "no CRIU", Remedy: "apt install criu"}},
	})
	want := `Name:     v1
Model:    vm (accelerator tcg, firmware uefi)
State:    failed
Reason:   qemu: exit status 1: no room
Host:     h1
Image:    debian/13
Digest:   sha256:ab
ID:       id
CPUs:     2
Memory:   1GiB
Disk:     10GiB in pool fast
Restart:  always (3 since the last start by hand); deleted when it stops
Labels:   a=1, b=2

Addresses:
  NETWORK  MAC                ADDRESS
  default  52:54:00:00:00:01  fd00::5/64

Capabilities:
  NAME       LEVEL    DETAIL
  live move  missing  no CRIU; to mend: apt install criu
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestTook(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second:            "0 ms",
		1500 * time.Microsecond: "1.5 ms",
		12 * time.Millisecond:   "12 ms",
		3200 * time.Millisecond: "3.2 s",
		92 * time.Second:        "1m32s",
	} {
		if got := took(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestExitCodes(t *testing.T) {
	devnull := (&app{}).exitCode
	if got := devnull(nil); got != 0 {
		t.Errorf("success: %d", got)
	}
	if got := devnull(exitStatus(42)); got != 42 {
		t.Errorf("a command's own: %d", got)
	}
	for kind, want := range map[api.Kind]int{
		api.Invalid: 2, api.NotFound: 3, api.Exists: 4, api.Conflict: 4, api.Precondition: 4, api.Cancelled: 5,
		api.Internal: 1, api.Unavailable: 1, api.Exhausted: 1, api.Unsupported: 1,
	} {
		if got := kind.ExitCode(); got != want {
			t.Errorf("%s: %d, want %d", kind, got, want)
		}
	}
}
