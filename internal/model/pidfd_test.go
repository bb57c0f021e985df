package model

import (
	"os"
	"os/exec"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"polder/api"
)

func TestWatchTellsHowAChildEnded(t *testing.T) {
	for _, c := range []struct {
		script string
		want   ExitStatus
	}{
		{"read x; exit 0", ExitStatus{Known: true}},
		{"read x; exit 7", ExitStatus{Known: true, Code: 7}},
		{"read x; kill -9 $$", ExitStatus{Known: true, Signal: syscall.SIGKILL}},
	} {
		t.Run(c.script, func(t *testing.T) {
			w, stdin := watched(t, c.script)
			select {
			case s := <-w.Exited:
				t.Fatalf("exited while it runs: %v", s)
			default:
			}
			_ = stdin.Close()
			if got := <-w.Exited; got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if _, ok := <-w.Exited; ok {
				t.Error("the channel is not closed after the one status")
			}
			if err := w.Signal(syscall.SIGTERM); err != nil {
				t.Errorf("signal after the end: %v", err)
			}
			if _, err := WatchPID(w.PID); api.KindOf(err) != api.NotFound {
				t.Errorf("watching it again: got %v, want not found", err)
			}
		})
	}
}

// A process that is not our child, as after a restart of the daemon: its parent is a shell that reaps it.
func TestWatchTellsHowAnotherProcessEnded(t *testing.T) {
	parent := exec.Command("sh", "-c", "exec 3<&0; sh -c 'echo $$; read x <&3; exit 3' & wait; read y <&4", "sh")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	parent.ExtraFiles = []*os.File{nil, r} // 4
	in, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	t.Cleanup(func() { _ = w.Close(); _ = parent.Wait() })
	buf := make([]byte, 32)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		t.Fatal(err)
	}
	watch, err := WatchPID(pid)
	if err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	// Before Linux 6.15 the status of a process that its parent reaped at once may be lost; a wrong one is never told.
	if got := <-watch.Exited; got.Known && got != (ExitStatus{Known: true, Code: 3}) {
		t.Errorf("got %v, want exit status 3", got)
	}
}

func TestWatchCloseLeavesTheProcessAlone(t *testing.T) {
	w, _ := watched(t, "read x")
	w.Close()
	if s, ok := <-w.Exited; ok {
		t.Fatalf("closed watch tells %v", s)
	}
	start, err := StartTime(w.PID)
	if err != nil || start != w.StartTime {
		t.Fatalf("start time: got %d, %v; want %d", start, err, w.StartTime)
	}
	again, err := WatchPID(w.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := <-again.Exited; got != (ExitStatus{Known: true, Signal: syscall.SIGTERM}) {
		t.Errorf("got %v, want killed by signal 15", got)
	}
}

func TestWatchesTakeNoThreads(t *testing.T) {
	const many = 200
	threads := pprof.Lookup("threadcreate")
	before := threads.Count()
	for range many {
		w, err := WatchPID(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
	}
	if grown := threads.Count() - before; grown > many/4 {
		t.Errorf("%d watches took %d threads", many, grown)
	}
}

func watched(t *testing.T, script string) (*Watch, interface{ Close() error }) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close() })
	w, err := WatchPID(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return w, stdin
}

func TestParseStat(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 256\n"
	got, err := parseStat([]byte("12 (a) S (b)" + tail))
	if err != nil || got != (procStat{state: 'S', start: 4711, exit: 256}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "12 (a", "12 (a) S 1 2"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
