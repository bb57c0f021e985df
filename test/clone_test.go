//go:build scenario

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"polder/api"
)

// who prints what a system is known by, a line each: name, machine id, host key, MAC, addresses.
const who = `cat /proc/sys/kernel/hostname /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub
	for d in /sys/class/net/e*; do cat $d/address; ip -4 -br addr show ${d##*/}; ip -6 -br addr show ${d##*/}; done`

// identities asks each VE who it is, until it has all that there is to know.
func identities(t *testing.T, names ...string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, name := range names {
		eventually(t, 2*time.Minute, func() string {
			r := polder(t.Context(), "exec", name, "--", "sh", "-ec", who)
			lines := strings.Split(strings.TrimSpace(r.out), "\n")
			if r.code != 0 || len(lines) != 6 || !strings.Contains(lines[4], "10.") || !strings.Contains(lines[5], "fd") {
				return fmt.Sprintf("%s does not know who it is: %q %s", name, lines, r.err)
			}
			if lines[0] != name {
				return fmt.Sprintf("%s takes itself for %s", name, lines[0])
			}
			all[name] = append(lines[:4:4], strings.Fields(lines[4])[2], strings.Join(strings.Fields(lines[5])[2:], " "))
			return ""
		})
	}
	return all
}

// allDiffer checks that no two VEs have anything in common by which they are known.
func allDiffer(t *testing.T, all map[string][]string) {
	t.Helper()
	seen := map[string]string{}
	for name, lines := range all {
		for i, line := range lines {
			for _, word := range strings.Fields(line) { // each address
				if other := seen[fmt.Sprint(i, word)]; other != "" {
					t.Errorf("%s and %s both have %s", name, other, word)
				}
				seen[fmt.Sprint(i, word)] = name
			}
		}
	}
}

// ended waits for the end of an operation, which outlives the daemon.
func ended(t *testing.T, id string) (op api.Operation) {
	t.Helper()
	eventually(t, time.Minute, func() string {
		r := polder(t.Context(), "op", "info", id, "-o", "json")
		if err := json.Unmarshal([]byte(r.out), &op); err != nil || !op.State.Final() {
			return r.out + r.err
		}
		return ""
	})
	return op
}

func deleteLater(t *testing.T, names ...string) {
	t.Cleanup(func() { polder(context.Background(), append([]string{"delete"}, names...)...) })
}

// Clones of a stopped VE have its files and nothing of its identity; what is asked amiss is refused, and leaves nothing.
func TestClone(t *testing.T) {
	const name = "original"
	launch(t, "debian/13", name, "--label", "a=1")
	booted(t, name, time.Minute)
	before := identities(t, name)
	must(t, "exec", name, "--", "sh", "-ec", "echo original >/root/file; ls /etc/ssh/ssh_host_ecdsa_key")

	refused(t, 4, "stop it first", "clone", name, "copy")
	refused(t, 1, "can't be taken", "clone", name, "copy", "--live")
	must(t, "stop", name)
	refused(t, 4, "only one that runs", "clone", name, "copy", "--live")
	refused(t, 4, "exists already", "clone", name, name)
	refused(t, 3, "no such VE", "clone", "nobody", "copy")
	refused(t, 2, "--count 0", "clone", name, "copy", "--count", "0")
	refused(t, 2, "1 to 256", "clone", name, "copy", "--count", "257")
	refused(t, 2, "ve name", "clone", name, "Copy")
	refused(t, 3, "no such VE", "info", "copy")

	deleteLater(t, "copy-1", "copy-2", "still")
	result := show[api.CloneResult](t, "clone", name, "copy", "--count", "2", "--start", "--label", "b=2")
	if len(result.VEs) != 2 || result.VEs[1].Name != "copy-2" || result.VEs[1].State != api.Running || result.VEs[1].Labels["a"] != "1" || result.VEs[1].Labels["b"] != "2" {
		t.Errorf("the result is %+v", result)
	}
	must(t, "clone", name, "still")
	if v := show[api.VE](t, "info", "still"); v.State != api.Stopped {
		t.Errorf("a clone that nobody started is %s", v.State)
	}
	must(t, "delete", name) // clones don't need it
	must(t, "start", "still")
	all := identities(t, "copy-1", "copy-2", "still")
	all[name] = before[name]
	allDiffer(t, all)
	must(t, "exec", "copy-1", "--", "sh", "-ec", "echo copy >/root/file")
	for _, copied := range []string{"copy-2", "still"} {
		if got := must(t, "exec", copied, "--", "cat", "/root/file"); got != "original" {
			t.Errorf("%s has %q", copied, got)
		}
	}
	must(t, "exec", "copy-1", "--", "ping", "-c1", "-W5", "still")
}

// Forks of a running VM go on counting where it was, under identities of their own, and have nothing to do with it any more.
func TestFork(t *testing.T) {
	const name = "trunk"
	launch(t, "debian/13", name, "--model", "vm", "--memory", "256MiB")
	refused(t, 4, "no guest agent answers", "clone", name, "early", "--live")
	booted(t, name, 4*time.Minute)
	// The count is in memory; it is written down each tenth of a second.
	must(t, "exec", name, "--", "sh", "-c", `perl -e 'while (++$n) { select undef, undef, undef, 0.1; open F, ">/run/count"; print F $n; close F }' >/dev/null 2>&1 &`)
	count := func(of string) (n int) {
		t.Helper()
		eventually(t, time.Minute, func() string { // it may be writing just now
			var err error
			n, err = strconv.Atoi(must(t, "exec", of, "--", "cat", "/run/count"))
			if err != nil {
				return err.Error()
			}
			return ""
		})
		return n
	}
	must(t, "exec", name, "--", "sh", "-ec", "echo trunk >/root/file")
	at := count(name)

	deleteLater(t, "fork-1", "fork-2", "twig")
	result := show[api.CloneResult](t, "clone", name, "fork", "--live", "--count", "2")
	t.Logf("%s stood still for %d ms; the forks were there after %d ms, ready after %d ms", name, result.StoodMS, result.RestoredMS, result.ReadyMS)
	must(t, "clone", "fork-1", "twig", "--live") // and a fork is forked
	all := identities(t, name, "fork-1", "fork-2", "twig")
	allDiffer(t, all)
	for who := range all {
		if n := count(who); n < at {
			t.Errorf("%s counted to %d, the trunk was at %d", who, n, at)
		}
		must(t, "exec", who, "--", "sh", "-ec", "echo "+who+" >/root/file; echo "+who+" >/run/memory")
	}
	for who := range all {
		if got := must(t, "exec", who, "--", "cat", "/root/file", "/run/memory"); got != who+"\n"+who {
			t.Errorf("%s has %q", who, got)
		}
	}
	snapshotOfMemory(t, name, count)
	must(t, "delete", name)
	for _, who := range []string{"fork-1", "fork-2", "twig"} {
		before := count(who)
		eventually(t, time.Minute, func() string {
			if n := count(who); n <= before {
				return fmt.Sprintf("%s stands still at %d", who, n)
			}
			return ""
		})
	}
	must(t, "exec", "fork-1", "--", "ping", "-c1", "-W10", "twig")

	// A daemon that is killed in the middle takes all back; the source goes on.
	host := show[api.VE](t, "info", "fork-1").Host
	id := must(t, "clone", "fork-1", "lost", "--live", "--count", "2", "--no-wait")
	eventually(t, time.Minute, func() string {
		if op := show[api.Operation](t, "op", "info", id); op.Step != "fork" && op.Step != "start" {
			return "it is at step " + op.Step
		}
		return ""
	})
	must(t, "lab", "exec", host, "--", "pkill", "-9", "-f", "^polder serve")
	if op := ended(t, id); op.State != api.OperationFailed {
		t.Errorf("it is %s", op.State)
	}
	refused(t, 3, "no such VE", "info", "lost-1")
	before := count("fork-1")
	eventually(t, time.Minute, func() string {
		if n := count("fork-1"); n <= before {
			return fmt.Sprintf("it stands still at %d", n)
		}
		return ""
	})
}

// A VM of an image that is kept warm does not boot: it is there at once, under an identity of its own.
func TestWarmTemplate(t *testing.T) {
	size := []string{"--memory", "288MiB"} // of which there is no other
	warm := append([]string{"image", "warm", "debian/13"}, size...)
	must(t, warm...)
	t.Cleanup(func() { polder(context.Background(), append(warm, "--off")...) })
	refused(t, 4, "already", warm...)
	refused(t, 4, "in use", "image", "delete", "debian/13")
	at := show[[]api.Template](t, "image", "warm", "--list")[0].Host
	deleteLater(t, "hot", "hotter", "cold")
	for _, name := range []string{"hot", "hotter"} {
		began := time.Now()
		v := show[api.VE](t, append([]string{"launch", "debian/13", name, "--model", "vm", "--host", at}, size...)...)
		if !v.FromTemplate {
			t.Errorf("%s is no fork of the template: %+v", name, v)
		}
		t.Logf("%s took %v", name, time.Since(began).Round(time.Millisecond))
		booted(t, name, 10*time.Second)
	}
	allDiffer(t, identities(t, "hot", "hotter"))
	publishes(t, "hot", "hot/1")
	if v := show[api.VE](t, "launch", "debian/13", "cold", "--model", "vm", "--host", at, "--memory", "320MiB", "--no-start"); v.FromTemplate {
		t.Error("a VM of another size is a fork of the template")
	}
	must(t, append(warm, "--off")...)
	refused(t, 3, "no template", append(warm, "--off")...)
	must(t, "exec", "hot", "--", "true") // it needs the template no more
	if left := must(t, "lab", "exec", at, "--", "sh", "-c", "ls /var/lib/polder/templates /var/lib/polder/pools/default/volumes | grep -E 'template-|warm' || true"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// snapshotOfMemory takes a VM with its memory, and brings it back: it goes on counting from there, as the same one.
func snapshotOfMemory(t *testing.T, name string, count func(string) int) {
	t.Helper()
	quiet := show[api.Snapshot](t, "snapshot", "create", name, "quiet")
	if !strings.Contains(quiet.How, "its agent froze its file systems") {
		t.Errorf("%+v", quiet)
	}
	before := identities(t, name)[name]
	taken := show[api.Snapshot](t, "snapshot", "create", name, "whole", "--memory")
	t.Logf("with its memory it stood still for %d ms; the snapshot takes %s", taken.StoodMS, taken.UsedBytes)
	at := count(name)
	must(t, "exec", name, "--", "sh", "-ec", "echo later >/root/file; rm /run/memory; sync")
	eventually(t, time.Minute, func() string {
		if n := count(name); n < at+20 {
			return fmt.Sprintf("it has counted to %d", n)
		}
		return ""
	})
	deleteLater(t, name+"-then")
	must(t, "clone", name, name+"-then", "--snapshot", "whole", "--live")
	if got := must(t, "exec", name+"-then", "--", "cat", "/root/file", "/run/memory"); got != name+"\n"+name {
		t.Errorf("a fork of the snapshot has %q", got)
	}
	count(name + "-then")
	allDiffer(t, identities(t, name, name+"-then"))
	must(t, "delete", name+"-then")
	must(t, "snapshot", "restore", name, "whole")
	if n := count(name); n > at+15 {
		t.Errorf("it was restored to before %d, and counts %d", at, n)
	}
	if got := must(t, "exec", name, "--", "cat", "/root/file", "/run/memory"); got != name+"\n"+name {
		t.Errorf("restored it has %q", got)
	}
	if after := identities(t, name)[name]; strings.Join(after, "|") != strings.Join(before, "|") {
		t.Errorf("it was %q, and is %q", before, after)
	}
	must(t, "snapshot", "restore", name, "quiet") // without memory: it boots
	booted(t, name, 4*time.Minute)
	if got := must(t, "exec", name, "--", "cat", "/root/file"); got != name {
		t.Errorf("restored it has %q", got)
	}
}
