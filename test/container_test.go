//go:build scenario

package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"polder/api"
)

// A container is a whole system: services that others reach over the network, names and packages from outside, a journal.
func TestSystemContainer(t *testing.T) {
	launch(t, "debian/13", "sys1")
	launch(t, "debian/13", "sys2")
	booted(t, "sys1", time.Minute)
	eventually(t, 10*time.Second, func() string {
		r := polder(t.Context(), "exec", "sys2", "--", "timeout", "3", "bash", "-c", "exec 3<>/dev/tcp/sys1.polder.internal/22; head -n 1 <&3")
		if !strings.HasPrefix(r.out, "SSH-2.0-OpenSSH") {
			return "no ssh server in sys1: " + r.out + r.err
		}
		return ""
	})
	must(t, "exec", "sys1", "--", "apt-get", "-qq", "update", "-o", "Acquire::Languages=none", "-o", "APT::Update::Error-Mode=any")

	follow := exec.CommandContext(t.Context(), binary(), "logs", "-f", "sys1")
	text := start(t, follow)
	must(t, "exec", "sys1", "--", "logger", "-t", "scenario", "first line")
	eventually(t, 10*time.Second, text.shows("first line"))
	must(t, "exec", "sys1", "--", "logger", "-t", "scenario", "second line")
	eventually(t, 10*time.Second, text.shows("second line"))
	if got := must(t, "logs", "sys1"); !strings.Contains(got, "second line") || !strings.Contains(got, "systemd") {
		t.Errorf("logs shows %d bytes without the journal", len(got))
	}
}

// Reboot and poweroff inside do what they say, whatever the restart policy.
func TestRebootInside(t *testing.T) {
	before := launch(t, "debian/13", "boots")
	booted(t, "boots", time.Minute)
	must(t, "exec", "boots", "--", "touch", "/root/kept", "/run/gone")
	must(t, "exec", "boots", "--", "reboot")
	eventually(t, 20*time.Second, func() string {
		if v := show[api.VE](t, "info", "boots"); v.State != api.Running || v.PID == before.PID || v.Restarts != 0 {
			return fmt.Sprintf("after a reboot it is %s, pid %d, %d restarts", v.State, v.PID, v.Restarts)
		}
		return ""
	})
	if got := must(t, "exec", "boots", "--", "ls", "-d", "/root/kept"); got != "/root/kept" {
		t.Errorf("after a reboot there is %q", got)
	}
	if r := polder(t.Context(), "exec", "boots", "--", "ls", "/run/gone"); r.code == 0 {
		t.Error("/run outlived a reboot")
	}
	booted(t, "boots", time.Minute)
	must(t, "exec", "boots", "--", "poweroff")
	eventually(t, 20*time.Second, func() string {
		if v := show[api.VE](t, "info", "boots"); v.State != api.Stopped || v.Reason != "powered off" {
			return fmt.Sprintf("after a poweroff it is %s: %s", v.State, v.Reason)
		}
		return ""
	})
	refused(t, 4, "stopped", "exec", "boots", "--", "true")
}

func TestExec(t *testing.T) {
	launch(t, "debian/13", "exec")
	sh := func(text string) []string { return []string{"--", "sh", "-c", text} }
	for _, c := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{"-u", "nobody", "-w", "/tmp", "-e", "A=1 2", "--", "sh", "-c", "id -un; pwd; echo $A"}, 0, "nobody\n/tmp\n1 2\n"},
		{[]string{"-u", "nobody:adm", "--", "id", "-gn"}, 0, "adm\n"},
		{[]string{"-u", "1234:55", "--", "sh", "-c", "id -u; id -g"}, 0, "1234\n55\n"},
		{[]string{"-u", "nosuch", "--", "id"}, 2, ""},
		{[]string{"-w", "/nosuch", "--", "id"}, 127, ""},
		{sh("exit 7"), 7, ""},
		{sh("kill -9 $$"), 128 + 9, ""},
		{sh("kill -TERM $$"), 128 + 15, ""},
		{[]string{"--", "nosuch"}, 127, ""},
		{[]string{"--", "/etc/passwd"}, 126, ""},
		{[]string{"--", "/etc"}, 126, ""},
		// What a checkpoint can't carry is refused inside, in ways that programs cope with.
		{[]string{"--", "unshare", "--uts", "true"}, 1, ""},
		{[]string{"--", "perl", "-e", "syscall(425, 1, 0); print $!+0"}, 0, "38"}, // io_uring_setup: ENOSYS
	} {
		if r := polder(t.Context(), append([]string{"exec", "exec"}, c.args...)...); r.code != c.code || r.out != c.out {
			t.Errorf("exec %q: exit %d, %q, %q; want exit %d, %q", c.args, r.code, r.out, r.err, c.code, c.out)
		}
	}
	data := bytes.Repeat([]byte("0123456789abcde\n"), 1<<17)
	through := exec.CommandContext(t.Context(), binary(), "exec", "exec", "--", "cat")
	through.Stdin = bytes.NewReader(data)
	if out, err := through.Output(); err != nil || !bytes.Equal(out, data) {
		t.Errorf("%d bytes through cat came back as %d, %v", len(data), len(out), err)
	}
}

// A terminal is a terminal: its size, also when it changes, control characters, the end of input and the exit code.
func TestExecTerminal(t *testing.T) {
	launch(t, "debian/13", "tty")
	cmd := exec.CommandContext(t.Context(), binary(), "exec", "tty", "--", "bash", "--norc")
	cmd.Env = append(os.Environ(), "TERM=xterm")
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 93})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	seen := &transcript{}
	go seen.readFrom(terminal)
	steps := []struct{ send, want string }{
		{"stty size; tput colors\n", "31 93\r\n8"},
		{"sleep 1000\n", "sleep 1000\r\n"},
		{"\x03", "^C"},
		{"echo code=$?\n", "code=130"},
	}
	for _, step := range steps {
		if _, err := terminal.WriteString(step.send); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, seen.shows(step.want))
	}
	if err := pty.Setsize(terminal, &pty.Winsize{Rows: 40, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() string {
		_, _ = terminal.WriteString("stty size\n")
		return seen.shows("40 120")()
	})
	if _, err := terminal.WriteString("(exit 42)\n\x04"); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("a shell that was left by Ctrl-D after a 42 ended with %v", err)
	}
}

// The console of a container is a login that is left by Ctrl-].
func TestContainerConsole(t *testing.T) {
	launch(t, "debian/13", "cons")
	booted(t, "cons", time.Minute)
	cmd := exec.CommandContext(t.Context(), binary(), "console", "cons")
	terminal, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	seen := &transcript{}
	go seen.readFrom(terminal)
	eventually(t, 10*time.Second, seen.shows("root@cons"))
	if _, err := terminal.WriteString("\x1d"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("a console that was left: %v", err)
	}
}

// cp keeps names, links and modes, and never follows a link to somewhere else.
func TestCopyOddThings(t *testing.T) {
	launch(t, "debian/13", "cp2")
	dir := t.TempDir()
	names := []string{"a b;$(x) \"q\" 'r'", "-dash", "new\nline", "ünï", "*"}
	from := filepath.Join(dir, "from")
	if err := os.MkdirAll(filepath.Join(from, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"dangling": "nowhere", "absolute": "/etc/shadow"} {
		if err := os.Symlink(to, filepath.Join(from, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(from, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", from, "cp2:/srv/copy")
	must(t, "cp", "cp2:/srv/copy", filepath.Join(dir, "back"))
	for _, name := range names {
		if text, err := os.ReadFile(filepath.Join(dir, "back", name)); err != nil || string(text) != name {
			t.Errorf("%q came back as %q, %v", name, text, err)
		}
	}
	for name, to := range map[string]string{"dangling": "nowhere", "absolute": "/etc/shadow"} {
		if got, err := os.Readlink(filepath.Join(dir, "back", name)); err != nil || got != to {
			t.Errorf("the link %s points to %q, %v", name, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "back/empty")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the empty directory came back as %v, %v", info, err)
	}
	refused(t, 3, "/nosuch", "cp", "cp2:/nosuch", dir)
	refused(t, 3, "nosuch", "cp", filepath.Join(dir, "nosuch"), "cp2:/srv/")
	refused(t, 3, "no directory", "cp", from, "cp2:/no/such/dir/x")
}

// A paused container does nothing at all until it is resumed.
func TestPauseFreezes(t *testing.T) {
	launch(t, "debian/13", "ice")
	must(t, "exec", "ice", "--", "sh", "-c", "nohup sh -c 'while :; do echo >>/run/ticks; sleep 0.02; done' >/dev/null 2>&1 &")
	file := fmt.Sprintf("/proc/%d/root/run/ticks", show[api.VE](t, "info", "ice").PID)
	ticks := func() int {
		n, err := strconv.Atoi(must(t, "lab", "exec", "h1", "--", "stat", "-c", "%s", file))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	must(t, "pause", "ice")
	frozen := ticks()
	refused(t, 4, "paused", "exec", "ice", "--", "true")
	refused(t, 4, "paused", "pause", "ice")
	if now := ticks(); now != frozen || now == 0 {
		t.Errorf("a paused container went on from %d to %d", frozen, now)
	}
	must(t, "resume", "ice")
	eventually(t, 5*time.Second, func() string {
		if ticks() == frozen {
			return "a resumed container stands still"
		}
		return ""
	})
}

// Root in a container is nobody on the host and for other containers; and no process stands beside it.
func TestContainerIsolation(t *testing.T) {
	bases := map[int]bool{}
	for _, name := range []string{"iso1", "iso2"} {
		v := launch(t, "debian/13", name)
		base, err := strconv.Atoi(must(t, "lab", "exec", "h1", "--", "stat", "-c", "%u", fmt.Sprintf("/proc/%d", v.PID)))
		if err != nil || base < 1<<28 || bases[base] {
			t.Errorf("root of %s is %d outside, %v; want a range of its own from 2^28 on", name, base, err)
		}
		bases[base] = true
		if parent := must(t, "lab", "exec", "h1", "--", "ps", "-o", "ppid=", "-p", strconv.Itoa(v.PID)); strings.TrimSpace(parent) != "1" {
			t.Errorf("the first process of %s has the parent %s, want the host's init: no monitor", name, parent)
		}
		// As root of this container, the other's files: what a container can reach by a descriptor that leaked.
		for other := range bases {
			if other == base {
				continue
			}
			r := polder(t.Context(), "lab", "exec", "h1", "--", "setpriv", "--reuid", strconv.Itoa(base), "--regid", strconv.Itoa(base), "--clear-groups",
				"kill", "-0", strconv.Itoa(show[api.VE](t, "info", "iso1").PID))
			if r.code == 0 {
				t.Errorf("uid %d of %s may signal the processes of iso1", base, name)
			}
		}
	}
	if r := polder(t.Context(), "lab", "exec", "h1", "--", "pgrep", "-l", "conmon|crun|monitor"); r.code == 0 {
		t.Errorf("processes beside the containers: %s", r.out)
	}
	// A limit holds, or info says that it does not and how to mend it.
	for _, c := range show[api.Host](t, "host", "info", "h1").Capabilities {
		if strings.HasPrefix(c.Name, "container-") && strings.HasSuffix(c.Name, "-limit") && c.Level != "ok" && !strings.Contains(c.Detail, "to mend:") {
			t.Errorf("%s is %s without a remedy: %s", c.Name, c.Level, c.Detail)
		}
	}
}

// transcript is what a terminal or a command has shown so far. Safe for concurrent use.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *transcript) readFrom(terminal *os.File) {
	block := make([]byte, 4096)
	for {
		n, err := terminal.Read(block)
		_, _ = s.Write(block[:n])
		if err != nil {
			return
		}
	}
}

// shows gives a check for eventually.
func (s *transcript) shows(want string) func() string {
	return func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !strings.Contains(s.text.String(), want) {
			return fmt.Sprintf("there is no %q in %q", want, s.text.String())
		}
		return ""
	}
}

// start runs a command until the end of the test and gives what it prints.
func start(t *testing.T, cmd *exec.Cmd) *transcript {
	t.Helper()
	seen := &transcript{}
	cmd.Stdout, cmd.Stderr = seen, seen
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	return seen
}
