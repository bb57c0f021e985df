package cli

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"polder/api"
)

// user is somebody at a terminal who has started polder.
type user struct {
	t    *testing.T
	tty  *os.File
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

func atTerminal(t *testing.T, f *fixture, args ...string) *user {
	t.Helper()
	cmd := exec.Command("polder", args...)
	cmd.Env = append(os.Environ(), "POLDER_HOST=unix://"+f.socket, "TERM=xterm", "HOME="+t.TempDir())
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
	if err != nil {
		t.Fatal(err)
	}
	u := &user{t: t, tty: tty, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(u.done)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			u.mu.Lock()
			u.out.Write(buf[:n])
			u.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it has mostly ended
		tty.Close()
	})
	return u
}

func (u *user) types(keys string) {
	u.t.Helper()
	if _, err := io.WriteString(u.tty, keys); err != nil {
		u.t.Fatal(err)
	}
}

func (u *user) screen() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.out.String()
}

func (u *user) sees(text string) {
	u.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if strings.Contains(u.screen(), text) {
			return
		}
	}
	u.t.Fatalf("never saw %q on the screen:\n%s", text, u.screen())
}

func (u *user) leaves(code int) {
	u.t.Helper()
	err := u.cmd.Wait()
	if got := u.cmd.ProcessState.ExitCode(); got != code {
		u.t.Errorf("exit code %d (%v), want %d; screen:\n%s", got, err, code, u.screen())
	}
}

// cooked fails when the terminal was left in raw mode.
func (u *user) cooked() {
	u.t.Helper()
	before, err := term.GetState(int(u.tty.Fd()))
	if err != nil {
		u.t.Fatal(err)
	}
	fresh, slave, err := pty.Open()
	if err != nil {
		u.t.Fatal(err)
	}
	defer fresh.Close()
	defer slave.Close()
	want, err := term.GetState(int(fresh.Fd()))
	if err != nil {
		u.t.Fatal(err)
	}
	if *before != *want {
		u.t.Error("the terminal was not restored")
	}
}

func runningVE(t *testing.T) *fixture {
	f := newFixture(t)
	f.backend.Add(api.VE{Name: "c1", Model: api.Container, State: api.Running})
	return f
}

func TestExecAtTerminal(t *testing.T) {
	u := atTerminal(t, runningVE(t), "exec", "c1", "--", "sh", "-c", `echo "term $TERM"; stty size; trap 'stty size; exit 9' WINCH; while :; do sleep 0.01; done`)
	u.sees("term xterm")
	u.sees("30 100")
	if err := pty.Setsize(u.tty, &pty.Winsize{Rows: 41, Cols: 81}); err != nil {
		t.Fatal(err)
	}
	u.sees("41 81")
	u.leaves(9)
	u.cooked()
}

func TestExecKeysGoToCommand(t *testing.T) {
	u := atTerminal(t, runningVE(t), "exec", "c1", "--", "sh", "-c", `trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.01; done`)
	u.sees("ready")
	u.types("\x03")
	u.sees("interrupted")
	u.leaves(4)
	u.cooked()
}

func TestConsole(t *testing.T) {
	u := atTerminal(t, runningVE(t), "console", "c1")
	u.sees("leave with Ctrl-]")
	u.sees("c1 login: ")
	u.types("root\x03")
	u.sees("ROOT\x03")
	u.types("\x1d")
	u.leaves(0)
	u.cooked()
}

func TestConsoleWhenServerGoesAway(t *testing.T) {
	f := runningVE(t)
	u := atTerminal(t, f, "console", "c1")
	u.sees("c1 login: ")
	f.bounce()
	u.sees("polder serve is shutting down")
	u.leaves(1)
	u.cooked()
}

func TestDeleteAsks(t *testing.T) {
	f := runningVE(t)
	u := atTerminal(t, f, "delete", "c1")
	u.sees("Running: c1. Delete with all data? [y/N]")
	u.types("\n")
	u.leaves(5)
	u = atTerminal(t, f, "delete", "c1")
	u.sees("[y/N]")
	u.types("\x03")
	u.leaves(5)
	u = atTerminal(t, f, "delete", "c1")
	u.sees("[y/N]")
	u.types("y\n")
	u.leaves(0)
	f.backend.Add(api.VE{Name: "c2", State: api.Running})
	u = atTerminal(t, f, "delete", "--force", "c2")
	u.leaves(0)
}

func TestProgressBar(t *testing.T) {
	f := newFixture(t)
	u := atTerminal(t, f, "launch", "slow/1", "c1")
	u.sees("launch c1: work")
	u.sees("40MiB / 100MiB")
	u.types("\x03")
	u.sees("cancelling (once more Ctrl-C leaves at once)")
	u.sees("cancelled, and what it had done is undone")
	u.leaves(5)
}

func TestSecondInterruptLeavesAtOnce(t *testing.T) {
	f := newFixture(t)
	u := atTerminal(t, f, "launch", "stuck/1", "c1")
	u.sees("launch c1: work")
	u.types("\x03")
	u.sees("not cancelled: operation 0001 is past its point of no return")
	u.types("\x03")
	u.leaves(-1) // by the signal
	f.backend.Release()
}
