package command

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"polder/api"
)

func TestRunReturnsOutput(t *testing.T) {
	out, err := Run(t.Context(), strings.NewReader("in"), "sh", "-c", `cat; echo " $LC_ALL"`)
	if err != nil || string(out) != "in C\n" {
		t.Fatalf("got %q, %v", out, err)
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	c := Command{Name: "sh", Args: []string{"-c", "pwd -P; echo $K; echo e >&2"}, Dir: dir, Env: []string{"K=v"}, Stdout: &out, Stderr: &errs}
	if _, err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	real, _ := filepath.EvalSymlinks(dir)
	if out.String() != real+"\nv\n" || errs.String() != "e\n" {
		t.Fatalf("stdout %q, stderr %q", out.String(), errs.String())
	}
}

func TestFailureSaysAll(t *testing.T) {
	out, err := Run(t.Context(), nil, "sh", "-c", "echo half; head -c 9000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 7")
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	if e.ExitCode != 7 || e.Argv[0] != "sh" || !strings.HasSuffix(e.Stderr, "the end") || len(e.Stderr) > tailSize {
		t.Errorf("got %+v", e)
	}
	if string(out) != "half\n" || !strings.HasPrefix(err.Error(), "sh -c ") || !strings.Contains(err.Error(), "exit status 7: ") {
		t.Errorf("got %q, %v", out, err)
	}
	if api.KindOf(err) != api.Internal {
		t.Errorf("kind %s", api.KindOf(err))
	}
}

func TestFullDiskIsExhausted(t *testing.T) {
	_, err := Run(t.Context(), nil, "sh", "-c", "echo 'write error: No space left on device' >&2; exit 1")
	if api.KindOf(err) != api.Exhausted || !errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		t.Errorf("got %v", err)
	}
}

func TestMissingToolNamesPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Run(t.Context(), nil, "no-such-tool")
	if api.KindOf(err) != api.Unsupported || !strings.Contains(err.Error(), "apt-get install no-such-tool") {
		t.Errorf("got %v", err)
	}
	if Package("qemu-img") != "qemu-utils" {
		t.Errorf("qemu-img is in %s", Package("qemu-img"))
	}
}

func TestCancelKillsTheGroup(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := Run(ctx, nil, "sh", "-c", "sleep 1000 & echo $! >"+pidFile+".new; mv "+pidFile+".new "+pidFile+"; wait")
		done <- err
	}()
	pid := 0
	for pid == 0 {
		text, _ := os.ReadFile(pidFile)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; api.KindOf(err) != api.Cancelled || !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "signal") {
		t.Errorf("got %v", err)
	}
	for range 2000 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("process %d of the group survived", pid)
}

func TestDeadlineIsUnavailable(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, nil, "sleep", "1000"); api.KindOf(err) != api.Unavailable {
		t.Errorf("got %v", err)
	}
}
