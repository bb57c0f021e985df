//go:build scenario

// Package test holds the scenarios: bin/polder driven as a user would, on a lab with real parts. Run by "make test"; alone:
//
//	make build && go test -tags scenario -count=1 ./test
//
// The tests share one lab, a cluster of three hosts, and one debian/13 image; each makes and deletes its own VEs, on h1 unless it says
// otherwise, and leaves three hosts that are ready. The lab is a different one from the user's (POLDER_LAB), so a lab that is up is not
// disturbed.
package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"polder/api"
)

// Where this run's lab lives; two runs at once take two. Not POLDER_LAB, which may be the user's own.
var labDir = flag.String("lab", "/var/lib/polder-test", "directory of the lab, which is made anew and removed")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	config, err := os.MkdirTemp("", "polder-scenario-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(config)
	os.Setenv("POLDER_LAB", *labDir)
	os.Setenv("XDG_CONFIG_HOME", config)
	os.Unsetenv("POLDER_HOST")
	for _, args := range [][]string{{"lab", "down"}, {"lab", "up", "--hosts", "3"}, {"image", "build", "debian/13"}} {
		began := time.Now()
		if r := polder(context.Background(), args...); r.code != 0 {
			fmt.Fprintf(os.Stderr, "polder %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
			polder(context.Background(), "lab", "down")
			return 1
		}
		fmt.Printf("polder %s: %.1f s\n", strings.Join(args, " "), time.Since(began).Seconds())
	}
	id := labID()
	if id == "" || leftovers(id) == "" {
		fmt.Fprintln(os.Stderr, "--- FAIL: nothing of a lab that is up is seen")
		return 1
	}
	code := m.Run()
	if r := polder(context.Background(), "lab", "down"); r.code != 0 {
		fmt.Fprintf(os.Stderr, "lab down: %s%s", r.out, r.err)
		return 1
	}
	if left := leftovers(id); left != "" {
		fmt.Fprintf(os.Stderr, "--- FAIL: lab down left behind:\n%s\n", left)
		return 1
	}
	return code
}

// labID is what the names of the lab's links, tables and cgroups end in, read off the cgroup of its first host.
func labID() string {
	var hosts []struct{ PID int }
	if err := json.Unmarshal([]byte(polder(context.Background(), "lab", "list", "-o", "json").out), &hosts); err != nil || len(hosts) == 0 {
		return ""
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", hosts[0].PID))
	if m := regexp.MustCompile(`polder-lab-([0-9a-f]+)`).FindSubmatch(text); m != nil {
		return string(m[1])
	}
	return ""
}

// leftovers is what the lab has left on the machine: processes, mounts, loop devices, links, nft tables, cgroups and files;
// "" when there is nothing. Other labs may come and go meanwhile.
func leftovers(id string) string {
	out, _ := exec.Command("bash", "-c", `
		ls -l /proc/[0-9]*/{exe,root,cwd} 2>/dev/null | grep -F -- "-> $POLDER_LAB"
		grep -F "$POLDER_LAB" /proc/self/mountinfo
		losetup -a | grep -F "$POLDER_LAB"
		{ ip -o link; ip netns list; nft list tables; find /sys/fs/cgroup -maxdepth 2 -name "*$0*"; } | grep -F "$0"
		ls -A "$POLDER_LAB" 2>/dev/null`, id).Output()
	return string(out)
}

type result struct {
	out, err string
	code     int
}

// polder runs the command line without a terminal. It talks to h1.
func polder(ctx context.Context, args ...string) result {
	return through(ctx, "", args...)
}

// through runs the command line without a terminal. It talks to a host of the lab; "" is the current context's, h1.
func through(ctx context.Context, host string, args ...string) result {
	cmd := exec.CommandContext(ctx, binary(), args...)
	if host != "" {
		cmd.Env = append(os.Environ(), "POLDER_HOST="+socketOf(host))
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return result{err: err.Error(), code: -1}
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// socketOf is where the daemon of a lab host is asked.
func socketOf(host string) string {
	return "unix://" + filepath.Join(*labDir, host, "run", "polder.sock")
}

func binary() string {
	if path := os.Getenv("POLDER_BIN"); path != "" {
		return path
	}
	path, _ := filepath.Abs("../bin/polder")
	return path
}

// must runs the command line and fails the test unless it succeeds; it gives standard output, trimmed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := polder(t.Context(), args...)
	if r.code != 0 {
		t.Fatalf("polder %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// refused runs the command line and fails the test unless it exits with code and says why in one line, the last one, that has
// text. Lines on how far it came may precede it.
func refused(t *testing.T, code int, text string, args ...string) {
	t.Helper()
	complains(t, polder(t.Context(), args...), code, text, args...)
}

// complains fails the test unless a command exited with code and one line that says why.
func complains(t *testing.T, r result, code int, text string, args ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.err), "\n")
	last := lines[len(lines)-1]
	if r.code != code || !strings.Contains(last, text) || !strings.HasPrefix(last, "error: ") || strings.Count(r.err, "error: ") != 1 {
		t.Errorf("polder %s:\n got exit %d, %q\nwant exit %d and one line of error with %q", strings.Join(args, " "), r.code, r.err, code, text)
	}
}

// show decodes what the command line shows as JSON.
func show[T any](t *testing.T, args ...string) T {
	t.Helper()
	var v T
	text := must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("polder %s -o json: %v\n%s", strings.Join(args, " "), err, text)
	}
	return v
}

// launch makes a VE that is deleted at the end of the test.
func launch(t *testing.T, image, name string, flags ...string) api.VE {
	t.Helper()
	must(t, append([]string{"launch", image, name}, flags...)...)
	t.Cleanup(func() { polder(context.Background(), "delete", name) })
	return show[api.VE](t, "info", name)
}

// eventually calls check until it gives "" or time is up; the last complaint fails the test. It waits for things that happen by
// themselves in another process, where there is nothing to block on.
func eventually(t *testing.T, limit time.Duration, check func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		complaint := check()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, complaint)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// booted waits until systemd in a VE says "running".
func booted(t *testing.T, name string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, func() string {
		r := polder(t.Context(), "exec", name, "--", "systemctl", "is-system-running")
		if state := strings.TrimSpace(r.out); state != "running" {
			failed := polder(t.Context(), "exec", name, "--", "systemctl", "--failed", "--no-legend")
			return fmt.Sprintf("%s is %q, exit %d: %s\nfailed units: %s", name, state, r.code, r.err, failed.out)
		}
		return ""
	})
}
