package crun

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"polder/internal/command"
)

// fake puts a shell script in crun's place. It finds its arguments in $@ and its directory in $DIR.
func fake(t *testing.T, script string) (r Runtime, dir string) {
	t.Helper()
	bin := t.TempDir()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "crun"), []byte("#!/bin/sh\nDIR="+dir+"\necho \"$@\" >> $DIR/calls\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return Runtime{Root: filepath.Join(dir, "state")}, dir
}

func calls(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestCreate(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	r, dir := fake(t, `for a; do case $a in --pid-file=*) echo 4711 > ${a#--pid-file=};; esac; done
env > $DIR/env; readlink /proc/self/fd/0 > $DIR/stdin; echo output; echo trouble >&2`)
	log, err := os.Create(filepath.Join(dir, "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	pid, err := r.Create(t.Context(), "id1", dir, log)
	if err != nil || pid != 4711 {
		t.Fatalf("pid %d, %v", pid, err)
	}
	if got := calls(t, dir); got != "--root="+r.Root+" --cgroup-manager=cgroupfs --log="+dir+"/crun.log create --bundle="+dir+" --pid-file="+dir+"/pid id1\n" {
		t.Errorf("called with %q", got)
	}
	if got, _ := os.ReadFile(log.Name()); string(got) != "output\ntrouble\n" {
		t.Errorf("log %q", got)
	}
	if got, _ := os.ReadFile(dir + "/env"); bytes.Contains(got, []byte("NOTIFY_SOCKET")) {
		t.Error("the container would be handed our notify socket")
	}
	if got, _ := os.ReadFile(dir + "/stdin"); !strings.HasPrefix(string(got), "pipe:") {
		t.Errorf("standard input is %q; crun would give it away", got)
	}
}

func TestFailureSaysWhy(t *testing.T) {
	r, dir := fake(t, `for a; do case $a in --log=*) echo "the reason" > ${a#--log=};; esac; done
echo "another reason" >&2; exit 1`)
	var failed *command.Error
	_, err := r.Create(t.Context(), "id1", dir, os.Stderr)
	if !errors.As(err, &failed) || failed.ExitCode != 1 || failed.Stderr != "the reason" || !slices.Contains(failed.Argv, "create") {
		t.Errorf("create: %v", err)
	}
	err = r.Start(t.Context(), "id1")
	if !errors.As(err, &failed) || failed.Stderr != "another reason" {
		t.Errorf("start: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := calls(t, dir)
	if err := r.Start(ctx, "id1"); !errors.Is(err, context.Canceled) || calls(t, dir) != before {
		t.Errorf("start with a cancelled context: %v", err)
	}
}

func TestKillAndState(t *testing.T) {
	r, dir := fake(t, `for a; do test $a = state && echo '{"status":"running"}'; done; exit 0`)
	if err := r.Kill(t.Context(), "id1", "TERM"); err != nil || !strings.HasSuffix(calls(t, dir), " kill id1 TERM\n") {
		t.Errorf("kill: %v, called with %q", err, calls(t, dir))
	}
	if state, err := r.State(t.Context(), "id1"); err != nil || string(state) != "{\"status\":\"running\"}\n" {
		t.Errorf("state: %q, %v", state, err)
	}
}

func TestDeleteOfAnUnknownContainerRunsNothing(t *testing.T) {
	r, dir := fake(t, "exit 1")
	if err := r.Delete(t.Context(), "id1"); err != nil {
		t.Error(err)
	}
	if err := os.MkdirAll(filepath.Join(r.Root, "id1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "id1"); err == nil || !strings.Contains(calls(t, dir), "delete --force id1") {
		t.Errorf("delete of a known one: %v", err)
	}
}

func TestExecOutcome(t *testing.T) {
	say := func(log string) string {
		return "for a; do case $a in --log=*) echo '" + log + "' | tee ${a#--log=} >&2;; esac; done\n"
	}
	for _, c := range []struct {
		name, script string
		code         int
		fails        bool
		stderr       string
	}{
		{"success", "exit 0", 0, false, ""},
		{"the command's own code", "exit 1", 1, false, ""},
		{"killed", "exit 137", 137, false, ""},
		{"a warning and success", say("odd"), 0, false, "odd\n"},
		{"no such command", say("executable file `x` not found in $PATH: No such file or directory") + "exit 1", 127, false, "executable file `x` not found in $PATH: No such file or directory\n"},
		{"not executable", say("open executable: Permission denied") + "exit 1", 126, false, "open executable: Permission denied\n"},
		{"a file without the x bit", say("the path `/x` exists but it is not executable: Operation not permitted") + "exit 255", 126, false, "the path `/x` exists but it is not executable: Operation not permitted\n"},
		{"a directory", say("the path `/x` is not a regular file: Operation not permitted") + "exit 255", 126, false, "the path `/x` is not a regular file: Operation not permitted\n"},
		{"crun's failure", say("container `x` does not exist") + "exit 1", 0, true, "container `x` does not exist\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, dir := fake(t, c.script)
			var stderr bytes.Buffer
			code, err := r.Exec(t.Context(), Exec{ID: "x", Process: &specs.Process{}, Dir: dir, Stderr: &stderr})
			if code != c.code || (err != nil) != c.fails || stderr.String() != c.stderr {
				t.Errorf("code %d, %v, stderr %q", code, err, &stderr)
			}
		})
	}
}

// What a command leaves running must not keep its caller waiting for the rest of its output.
func TestExecDoesNotWaitForTheBackground(t *testing.T) {
	r, dir := fake(t, "sleep 60 & echo $! > $DIR/background; echo done")
	var out bytes.Buffer
	code, err := r.Exec(t.Context(), Exec{ID: "x", Process: &specs.Process{}, Dir: dir, Stdout: &out})
	if code != 0 || err != nil || out.String() != "done\n" {
		t.Errorf("code %d, %v, output %q", code, err, &out)
	}
	pid, ok := Exec{Dir: rename(t, dir, "background", "pid")}.PID()
	if !ok {
		t.Fatal("no background process")
	}
	p, _ := os.FindProcess(pid)
	_ = p.Kill()
}

func rename(t *testing.T, dir, from, to string) string {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
	return dir
}
