//go:build scenario

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"polder/api"
)

// hosts are those of the lab, by name; they are fewer than three only while a test has killed one.
var hosts = []string{"h1", "h2", "h3"}

// whole waits until every host of the lab is ready, and all of them keep the store.
func whole(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func() string {
		var list []api.Host
		r := polder(t.Context(), "host", "list", "-o", "json")
		if err := json.Unmarshal([]byte(r.out), &list); err != nil {
			return r.err
		}
		for _, h := range list {
			if h.State != api.HostReady || h.Role != api.RoleMember {
				return fmt.Sprintf("%s is %s, %s", h.Name, h.State, h.Role)
			}
		}
		if len(list) != len(hosts) {
			return fmt.Sprintf("%d hosts", len(list))
		}
		return ""
	})
}

// Any host answers for all: what is asked of one about a VE on another is the same, streams included.
func TestAnyHostAnswersForAll(t *testing.T) {
	whole(t)
	launch(t, "debian/13", "any", "--host", "h2")
	launch(t, "debian/13", "peer", "--host", "h3")
	booted(t, "any", time.Minute)
	shown := must(t, "list", "-o", "json")
	info := through(t.Context(), "h2", "info", "any").out
	if !strings.Contains(info, "disk-limit") {
		t.Errorf("what a VE can do is not shown on its own host:\n%s", info)
	}
	dir := t.TempDir()
	for _, host := range hosts {
		ask := func(args ...string) string {
			t.Helper()
			r := through(t.Context(), host, args...)
			if r.code != 0 {
				t.Fatalf("on %s: polder %s: exit %d: %s", host, strings.Join(args, " "), r.code, r.err)
			}
			return strings.TrimSpace(r.out)
		}
		if got := ask("list", "-o", "json"); got != shown {
			t.Errorf("list on %s:\n%s\non h1:\n%s", host, got, shown)
		}
		if _, can, _ := strings.Cut(ask("info", "any"), "Capabilities:"); !strings.HasSuffix(strings.TrimSpace(info), can) || can == "" {
			t.Errorf("info on %s shows:\n%s\nits own host:\n%s", host, can, info)
		}
		if r := through(t.Context(), host, "exec", "any", "--", "sh", "-c", "hostname; exit 7"); r.code != 7 || r.out != "any\n" {
			t.Errorf("exec on %s: exit %d, %q, %q", host, r.code, r.out, r.err)
		}
		if got := ask("logs", "any"); !strings.Contains(got, "systemd") {
			t.Errorf("logs on %s has %d bytes, none of systemd's", host, len(got))
		}
		ask("cp", "any:/etc/hostname", filepath.Join(dir, host))
		if got, err := os.ReadFile(filepath.Join(dir, host)); err != nil || string(got) != "any\n" {
			t.Errorf("cp on %s: %q, %v", host, got, err)
		}
		var h api.Host
		if err := json.Unmarshal([]byte(ask("host", "info", "h3", "-o", "json")), &h); err != nil || h.VEs != 1 || len(h.Capabilities) == 0 {
			t.Errorf("on %s, h3 is %+v, %v", host, h, err)
		}
	}
	attach := exec.CommandContext(t.Context(), binary(), "console", "any")
	attach.Env = append(attach.Environ(), "POLDER_HOST="+socketOf("h3"))
	terminal, err := pty.Start(attach)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	seen := &transcript{}
	go seen.readFrom(terminal)
	eventually(t, 10*time.Second, seen.shows("root@any"))
	if _, err := terminal.WriteString("\x1d"); err != nil {
		t.Fatal(err)
	}
	if err := attach.Wait(); err != nil {
		t.Errorf("a console that was left: %v", err)
	}

	// One network: by name, both families, from host to host.
	for _, family := range []string{"-4", "-6"} {
		eventually(t, 20*time.Second, func() string {
			r := polder(t.Context(), "exec", "peer", "--", "ping", family, "-c", "1", "-W", "2", "any")
			if r.code != 0 {
				return r.out + r.err
			}
			return ""
		})
	}
	if r := through(t.Context(), "h3", "restart", "any"); r.code != 0 {
		t.Errorf("restart on h3 of a VE on h2: %s", r.err)
	}
	refused(t, 3, "h9", "host", "info", "h9")
}

// A host comes later, goes, and comes back as a witness. A token lets in one host, once, in time.
func TestJoinAndRemove(t *testing.T) {
	whole(t)
	must(t, "lab", "up", "--hosts", "4", "--no-daemon") // h4 is bare
	serve := func(flags ...string) []string {
		return append([]string{"lab", "exec", "h4", "--", "polder", "serve", "--data", "/var/lib/polder"}, flags...)
	}
	joinRefused := func(text, token string) {
		t.Helper()
		r := polder(t.Context(), serve("--join", token)...)
		lines := strings.Split(strings.TrimSpace(r.err), "\n")
		if last := lines[len(lines)-1]; r.code == 0 || !strings.HasPrefix(last, "error: ") || !strings.Contains(last, text) {
			t.Errorf("a join that is to be refused with %q: exit %d, %q", text, r.code, last)
		}
	}
	token := func(flags ...string) api.JoinToken {
		return show[api.JoinToken](t, append([]string{"host", "token"}, flags...)...)
	}
	good := token().Token
	joinRefused("does not begin with", "nonsense")
	joinRefused("cut or altered", "polder-join-nonsense")
	joinRefused("cut or altered", good[:len(good)-4]+"aaaa")
	short := token("--expires", "1s")
	eventually(t, 5*time.Second, func() string {
		if left := time.Until(short.ExpiresAt); left > 0 {
			return "the token is good for another " + left.String()
		}
		return ""
	})
	joinRefused("expired", short.Token)

	first := begin(t, serve("--join", good)...)
	ready(t, "h4", api.RoleClient)
	launch(t, "debian/13", "late", "--host", "h4")
	if got := must(t, "exec", "late", "--", "hostname"); got != "late" {
		t.Errorf("the host name in a VE on h4 is %q", got)
	}
	refused(t, 4, "h4", "host", "remove", "h4")
	must(t, "move", "late", "--to", "h2", "--mode", "cold")
	lost := launch(t, "debian/13", "lost", "--host", "h4")
	must(t, "host", "remove", "h4", "--force") // it is alive; it notices, ends its VEs, and ends itself
	launch(t, "debian/13", "lost", "--no-start")
	if r := first.end(); !strings.Contains(r.err, "removed") {
		t.Errorf("a host that was removed ended with exit %d: %q", r.code, r.err)
	}
	if left := must(t, "lab", "exec", "h4", "--", "sh", "-c", "grep -l ^0::/polder/ /proc/[0-9]*/cgroup; ip -o link | grep polder0; ls -d /var/lib/polder/pools/default/volumes/$0", lost.ID); left != "/var/lib/polder/pools/default/volumes/"+lost.ID {
		t.Errorf("on a host that was removed there should be nothing but the volume of its VE; there is:\n%s", left)
	}
	refused(t, 3, "h4", "host", "info", "h4")
	must(t, "exec", "late", "--", "true")
	joinRefused("used already", good)

	witness := begin(t, serve("--witness", "--join", token().Token)...)
	ready(t, "h4", api.RoleWitness)
	refused(t, 4, "witness", "launch", "debian/13", "nowhere", "--host", "h4")
	refused(t, 4, "witness", "move", "late", "--to", "h4")
	must(t, "host", "remove", "h4", "--force")
	witness.end()
	whole(t)
}

// ready waits until a host is there, in its role.
func ready(t *testing.T, name string, role api.HostRole) {
	t.Helper()
	eventually(t, 30*time.Second, func() string {
		var h api.Host
		r := polder(t.Context(), "host", "info", name, "-o", "json")
		if err := json.Unmarshal([]byte(r.out), &h); err != nil || h.State != api.HostReady || h.Role != role {
			return fmt.Sprintf("%s is %s, %s: %s", name, h.State, h.Role, r.err)
		}
		return ""
	})
}

// Each of three hosts may die, the one that leads as well: the others go on, and it comes back.
func TestAnyOneHostMayDie(t *testing.T) {
	for i, dead := range hosts {
		whole(t)
		alive := hosts[(i+1)%len(hosts)]
		name := "survivor" + alive
		launch(t, "debian/13", name, "--host", alive)
		pid := show[api.VE](t, "info", name).PID
		must(t, "lab", "kill", dead)
		ask := func(args ...string) string {
			t.Helper()
			var r result
			eventually(t, 20*time.Second, func() string { // until another one leads
				r = through(t.Context(), alive, args...)
				return r.err
			})
			return r.out
		}
		eventually(t, 30*time.Second, func() string {
			var h api.Host
			if err := json.Unmarshal([]byte(ask("host", "info", dead, "-o", "json")), &h); err != nil || h.State != api.HostUnreachable {
				return fmt.Sprintf("%s is %s, %v", dead, h.State, err)
			}
			return ""
		})
		if r := through(t.Context(), alive, "move", name, "--to", dead); r.code == 0 || !strings.Contains(r.err, "is down or cut off") {
			t.Errorf("move to a dead host: exit %d, %q", r.code, r.err)
		}
		if r := through(t.Context(), alive, "launch", "debian/13", name+"b", "--host", alive); r.code != 0 {
			t.Errorf("launch while %s is dead: %s", dead, r.err)
		}
		t.Cleanup(func() { polder(context.Background(), "delete", name+"b") })
		must(t, "lab", "start", dead)
		whole(t)
		if v := show[api.VE](t, "info", name); v.PID != pid || v.State != api.Running {
			t.Errorf("%s was pid %d, and is %s, pid %d", name, pid, v.State, v.PID)
		}
	}
}

// The daemon that leads is killed: nobody who asks another host is told anything but the truth.
func TestDaemonsKilledInTurn(t *testing.T) {
	whole(t)
	launch(t, "debian/13", "calm", "--host", "h2")
	for i, host := range hosts {
		killDaemon(t, host)
		eventually(t, 20*time.Second, func() string {
			return through(t.Context(), hosts[(i+1)%len(hosts)], "exec", "calm", "--", "true").err
		})
		whole(t)
	}
}
