package vm

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"pgregory.net/rapid"

	"polder/api"
	"polder/internal/model"
)

func TestSeedHoldsWhatWasGiven(t *testing.T) {
	ve := model.Spec{Dir: t.TempDir(), CloudInit: model.CloudInit{UserData: "#cloud-config\n" + strings.Repeat("x", 5000), MetaData: "instance-id: i\n"}}
	if err := writeSeed(ve); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(seedFile(ve))
	if err != nil || info.Mode().Perm() != 0o600 || info.Size()%isoBlock != 0 {
		t.Fatalf("%v, %v; want mode 0600, whole blocks", info, err)
	}
	f, err := os.Open(seedFile(ve))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	iso, err := iso9660.Read(file.New(f, true), info.Size(), 0, isoBlock)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimRight(iso.Label(), "\x00 "); got != "cidata" {
		t.Errorf("label %q", got)
	}
	for name, want := range map[string]string{"user-data": ve.CloudInit.UserData, "meta-data": ve.CloudInit.MetaData} {
		r, err := iso.OpenFile("/"+name, os.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if _, err := iso.OpenFile("/network-config", os.O_RDONLY); err == nil {
		t.Error("an empty network-config is there, which configures no network")
	}
}

func TestMachineIsSettledOnce(t *testing.T) {
	ve := model.Spec{Dir: t.TempDir()}
	m := New(Config{QEMU: fakeQEMU(t, "9.2")})
	first, err := m.settle(t.Context(), ve)
	if err != nil || first.Machine != "pc-q35-9.2" || first.CPU != portableCPU || first.Generation == "" {
		t.Fatalf("got %+v, %v", first, err)
	}
	again, err := New(Config{QEMU: fakeQEMU(t, "10.1")}).settle(t.Context(), ve)
	if err != nil || again != first {
		t.Errorf("with a newer qemu: got %+v, %v; want %+v", again, err, first)
	}
	if err := os.WriteFile(ve.Dir+"/machine.json", []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.settle(t.Context(), ve); api.KindOf(err) != api.Unsupported {
		t.Errorf("a newer version: got %v", err)
	}
}

func fakeQEMU(t *testing.T, version string) string {
	path := filepath.Join(t.TempDir(), "qemu")
	script := fmt.Sprintf("#!/bin/sh\necho 'q35  Standard PC (alias of pc-q35-%s)'\n", version)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEndIsJudged(t *testing.T) {
	known := func(code int, sig syscall.Signal) model.ExitStatus {
		return model.ExitStatus{Known: true, Code: code, Signal: sig}
	}
	for _, c := range []struct {
		name             string
		status           model.ExitStatus
		log              string
		pidfile, halting bool
		crashed          bool
		reason           string
	}{
		{name: "powered off", status: known(0, 0), reason: "powered off"},
		{name: "powered off, unseen", reason: "powered off"},
		{name: "killed", status: known(0, 9), pidfile: true, crashed: true, reason: "qemu: killed by signal 9"},
		{name: "killed, unseen", pidfile: true, crashed: true, reason: "qemu was killed"},
		{name: "stopped", status: known(0, 9), pidfile: true, halting: true, reason: "stopped"},
		{name: "panicked", status: known(1, 0), crashed: true, reason: "its kernel panicked (qemu: exit status 1): see polder logs v1"},
		{name: "failed", status: known(1, 0), log: "x\nbad thing\n", crashed: true, reason: "qemu: exit status 1: bad thing"},
		{name: "terminated", status: known(0, 0), log: "qemu: terminating on signal 15 from pid 1\n", crashed: true, reason: "qemu: qemu: terminating on signal 15 from pid 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ve := model.Spec{Name: "v1", Dir: t.TempDir(), Cgroup: "/no/such"}
			if err := os.Mkdir(runDir(ve), 0o700); err != nil {
				t.Fatal(err)
			}
			for path, there := range map[string]bool{pidFile(ve): c.pidfile, haltingFile(ve): c.halting, qemuLog(ve): c.log != ""} {
				if !there {
					continue
				}
				if err := os.WriteFile(path, []byte(c.log), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := ended(ve, c.status, false); got.Crashed != c.crashed || got.Reason != c.reason {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// Nothing leads out of the directory that belongs to the VE's user, and nothing there blocks.
func TestHolderIsNotLedAstray(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"nothing": func(string) error { return nil },
		"file":    func(path string) error { return os.WriteFile(path, []byte("1\n"), 0o600) },
		"fifo":    func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link":    func(path string) error { return os.Symlink("/etc/passwd", path) },
	} {
		t.Run(name, func(t *testing.T) {
			ve := model.Spec{Dir: t.TempDir()}
			if err := os.Mkdir(runDir(ve), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := plant(pidFile(ve)); err != nil {
				t.Fatal(err)
			}
			if pid, _ := holder(ve); pid != 0 {
				t.Errorf("found pid %d", pid)
			}
		})
	}
}

func TestConsoleSharesOneConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := &fanout{path: path}
	one, err := f.attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two, err := f.attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	port, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = port.Write([]byte("hello"))
	if a, b := string(<-one.output), string(<-two.output); a != "hello" || b != "hello" {
		t.Errorf("got %q and %q", a, b)
	}
	f.detach(one)
	_, _ = two.conn.Write([]byte("x"))
	buf := make([]byte, 8)
	if n, err := port.Read(buf); err != nil || string(buf[:n]) != "x" {
		t.Errorf("the port read %q, %v", buf[:n], err)
	}
	_ = port.Close()
	for range two.output { // closed when the port goes away
	}
	f.detach(two)
	three, err := f.attach(t.Context()) // and made anew
	if err != nil {
		t.Fatal(err)
	}
	f.detach(three)
}

func TestQuoteKeepsWords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := strings.ReplaceAll(rapid.String().Draw(t, "word"), "\x00", "")
		out, err := exec.Command("sh", "-c", "printf %s "+quote(word)).Output()
		if err != nil || string(out) != word {
			t.Fatalf("%q became %q, %v", word, out, err)
		}
	})
}

func TestExecArguments(t *testing.T) {
	req := api.ExecRequest{Command: []string{"echo", "a b"}, Env: []string{"A=b"}, User: "root", Dir: "/x"}
	env, args := execArguments("/d", req, true)
	if want := []string{"/d", "", "/x", "", "1", "echo", "a b"}; !slices.Equal(args, want) || !slices.Contains(env, "A=b") {
		t.Errorf("got %q, %q; want %q", env, args, want)
	}
	req.TTY, req.Rows, req.Cols, req.User = true, 10, 20, "me:us"
	_, args = execArguments("/d", req, false)
	if want := []string{"/d", "me:us", "/x", "stty sane rows 10 cols 20; cd -- '/x' || exit 126; exec", "0", "'echo' 'a b'"}; !slices.Equal(args, want) {
		t.Errorf("got %q; want %q", args, want)
	}
}

func TestInboxGathersAndEnds(t *testing.T) {
	in := &inbox{changed: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	text := strings.Repeat("0123456789", 500_000)
	go in.fill(t.Context(), strings.NewReader(text))
	var got strings.Builder
	for {
		data, more, err := in.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		got.Write(data)
	}
	if got.String() != text {
		t.Errorf("%d of %d bytes", got.Len(), len(text))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := (&inbox{room: make(chan struct{}, 1)}).take(ctx); err == nil {
		t.Error("taking with a cancelled context")
	}
}

func TestLogIsCutToItsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	text := strings.Repeat("a", 3<<20) + "the end"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	qemu, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	for _, most := range []int64{4 << 20, 2 << 20} {
		if err := cutLog(path, most); err != nil {
			t.Fatal(err)
		}
		want := text
		if most < int64(len(text)) {
			want = text[len(text)-logKept:]
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("at most %d: %d bytes, %v; want %d", most, len(got), err, len(want))
		}
	}
	if _, err := qemu.WriteString(" and more"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(got), "the end and more") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
