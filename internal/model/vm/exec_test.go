package vm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"polder/api"
	"polder/internal/model"
)

// stubAgent does what qemu-ga does for an exec, to this machine: it tries the script and the protocol around it. How the
// real one behaves is for the scenarios to show.
type stubAgent struct {
	mu     sync.Mutex
	files  map[int64]*os.File
	next   int64
	exited map[int64]*spawned
}

func serveAgent(t *testing.T) *agentLine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := &stubAgent{files: map[int64]*os.File{}, exited: map[int64]*spawned{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			a.serve(conn)
			_ = conn.Close()
		}
	}()
	line := newAgentLine(path)
	t.Cleanup(func() {
		line.close()
		_ = l.Close()
		<-done
		if len(a.files) > 0 {
			t.Errorf("%d files were left open in the agent", len(a.files))
		}
	})
	return line
}

type agentRequest struct {
	Execute   string `json:"execute"`
	Arguments struct {
		ID     int64    `json:"id"`
		Path   string   `json:"path"`
		Mode   string   `json:"mode"`
		Arg    []string `json:"arg"`
		Env    []string `json:"env"`
		PID    int64    `json:"pid"`
		Handle int64    `json:"handle"`
		Count  int      `json:"count"`
		Data   []byte   `json:"buf-b64"`
	} `json:"arguments"`
}

func (a *stubAgent) serve(conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var req agentRequest
		if json.Unmarshal(bytes.TrimPrefix(line, []byte{0xFF}), &req) != nil {
			return
		}
		reply := map[string]any{}
		if result, err := a.do(req); err != nil {
			reply["error"] = map[string]string{"class": "GenericError", "desc": err.Error()}
		} else {
			reply["return"] = result
		}
		data, _ := json.Marshal(reply)
		if req.Execute == "guest-sync-delimited" {
			data = append([]byte{0xFF}, data...)
		}
		if _, err := conn.Write(append(data, '\n')); err != nil {
			return
		}
	}
}

func (a *stubAgent) do(req agentRequest) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	args := req.Arguments
	f := a.files[args.Handle]
	if f == nil && args.Handle != 0 {
		return nil, errors.New("no such handle")
	}
	switch req.Execute {
	case "guest-sync-delimited":
		return args.ID, nil
	case "guest-file-open":
		flags := map[string]int{"r": os.O_RDONLY, "r+": os.O_RDWR, "w": os.O_WRONLY | os.O_CREATE | os.O_TRUNC}[args.Mode]
		f, err := os.OpenFile(args.Path, flags, 0o666)
		if err != nil {
			return nil, err
		}
		a.next++
		a.files[a.next] = f
		return a.next, nil
	case "guest-file-read":
		buf := make([]byte, args.Count)
		n, err := io.ReadFull(f, buf)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return nil, err
		}
		return map[string]any{"count": n, "buf-b64": base64.StdEncoding.EncodeToString(buf[:n])}, nil
	case "guest-file-write":
		n, err := f.Write(args.Data)
		return map[string]int{"count": n}, err
	case "guest-file-close":
		delete(a.files, args.Handle)
		return struct{}{}, f.Close()
	case "guest-exec":
		return a.spawn(args.Path, args.Arg, args.Env)
	case "guest-exec-status":
		if s := a.exited[args.PID]; s != nil {
			return s, nil
		}
		return nil, errors.New("no such process")
	}
	return struct{}{}, nil
}

func (a *stubAgent) spawn(path string, args, env []string) (any, error) {
	cmd := exec.Command(path, args...)
	cmd.Env = env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := int64(cmd.Process.Pid)
	a.exited[pid] = &spawned{}
	go func() {
		_ = cmd.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.exited[pid] = &spawned{Exited: true, Code: max(0, cmd.ProcessState.ExitCode()), Stderr: base64.StdEncoding.EncodeToString(stderr.Bytes())}
	}()
	return map[string]int64{"pid": pid}, nil
}

// perform runs one command and gives its output.
func perform(ctx context.Context, t *testing.T, req api.ExecRequest, streams model.Streams) (code int, stdout, stderr string, err error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "x", "y")
	var out, errs bytes.Buffer
	if streams.Stdout == nil {
		streams.Stdout = &out
	}
	streams.Stderr = &errs
	s := &session{line: serveAgent(t), dir: dir, streams: streams, poll: 20 * time.Millisecond}
	if err = s.start(ctx, req); err == nil {
		code, err = s.follow(ctx)
	}
	s.tidy(ctx)
	if _, statErr := os.Stat(dir); statErr == nil {
		t.Errorf("the command's directory is left behind")
	}
	return code, out.String(), errs.String(), err
}

func TestExecResults(t *testing.T) {
	for name, c := range map[string]struct {
		req            api.ExecRequest
		stdin          io.Reader
		code           int
		stdout, stderr string
	}{
		"output":      {req: api.ExecRequest{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}}, code: 3, stdout: "out\n", stderr: "err\n"},
		"killed":      {req: api.ExecRequest{Command: []string{"sh", "-c", "kill -KILL $$"}}, code: 137},
		"words":       {req: api.ExecRequest{Command: []string{"printf", "%s|", "a b", "", "$x", "'"}}, stdout: "a b||$x|'|"},
		"environment": {req: api.ExecRequest{Command: []string{"sh", "-c", `echo "$A"`}, Env: []string{"A=b c"}}, stdout: "b c\n"},
		"directory":   {req: api.ExecRequest{Command: []string{"pwd"}, Dir: "/usr/bin/.."}, stdout: "/usr\n"},
		"input":       {req: api.ExecRequest{Command: []string{"cat"}}, stdin: strings.NewReader("a\x00b"), stdout: "a\x00b"},
		"empty input": {req: api.ExecRequest{Command: []string{"cat"}}, stdin: strings.NewReader("")},
		"no input":    {req: api.ExecRequest{Command: []string{"cat"}}},
		"not read":    {req: api.ExecRequest{Command: []string{"true"}}, stdin: strings.NewReader(strings.Repeat("x", 5<<20))},
		"background":  {req: api.ExecRequest{Command: []string{"sh", "-c", "sleep 5 & echo there"}}, stdout: "there\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr, err := perform(t.Context(), t, c.req, model.Streams{Stdin: c.stdin})
			if err != nil || code != c.code || stdout != c.stdout || stderr != c.stderr {
				t.Errorf("exit code %d, stdout %q, stderr %q, %v; want %d, %q, %q", code, stdout, stderr, err, c.code, c.stdout, c.stderr)
			}
		})
	}
}

// Far more than the pieces that may wait, both ways, through a command that hands it on.
func TestExecKeepsBulk(t *testing.T) {
	data := make([]byte, 13<<20)
	rng := rand.New(rand.NewSource(1))
	_, _ = rng.Read(data)
	code, stdout, _, err := perform(t.Context(), t, api.ExecRequest{Command: []string{"cat"}}, model.Streams{Stdin: bytes.NewReader(data)})
	if err != nil || code != 0 || sha256.Sum256([]byte(stdout)) != sha256.Sum256(data) {
		t.Errorf("exit code %d, %d of %d bytes, %v", code, len(stdout), len(data), err)
	}
}

// expecting calls then when the text has been written.
type expecting struct {
	bytes.Buffer
	text string
	then func()
}

func (e *expecting) Write(p []byte) (int, error) {
	n, err := e.Buffer.Write(p)
	if e.then != nil && strings.Contains(e.String(), e.text) {
		e.then()
		e.then = nil
	}
	return n, err
}

func TestExecPassesSignals(t *testing.T) {
	signals := make(chan string, 1)
	out := &expecting{text: "ready", then: func() { signals <- "TERM" }}
	req := api.ExecRequest{Command: []string{"sh", "-c", "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done"}}
	code, _, _, err := perform(t.Context(), t, req, model.Streams{Stdout: out, Signals: signals})
	if err != nil || code != 4 {
		t.Errorf("exit code %d, %v; want the trap's 4", code, err)
	}
}

func TestExecThatIsCutOffKillsTheCommand(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &expecting{text: "\n", then: cancel}
	_, _, _, err := perform(ctx, t, api.ExecRequest{Command: []string{"sh", "-c", "echo $$; exec sleep 1000"}}, model.Streams{Stdout: out})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	var pid int
	if err := json.Unmarshal(bytes.TrimSpace(out.Bytes()), &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v; want it gone", pid, err)
	}
}

func TestExecHasATerminal(t *testing.T) {
	resize := make(chan api.Resize, 1)
	stdin, feed := io.Pipe()
	out := &expecting{text: "11 44"}
	out.then = func() {
		resize <- api.Resize{Rows: 22, Cols: 55}
		go func() { _, _ = io.WriteString(feed, "go on\n") }()
	}
	req := api.ExecRequest{TTY: true, Rows: 11, Cols: 44, Command: []string{
		"sh", "-c",
		`test -t 0 && stty size; read line; while [ "$(stty size)" != "22 55" ]; do sleep 0.02; done; echo "it's $line"; exit 6`,
	}}
	code, _, _, err := perform(t.Context(), t, req, model.Streams{Stdin: stdin, Stdout: out, Resize: resize})
	if err != nil || code != 6 || !strings.Contains(out.String(), "it's go on\r\n") {
		t.Errorf("exit code %d, output %q, %v", code, out.String(), err)
	}
}

func TestExecRefusesAnUnknownUser(t *testing.T) {
	_, _, _, err := perform(t.Context(), t, api.ExecRequest{Command: []string{"true"}, User: "no-such-user"}, model.Streams{})
	if api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), "no-such-user") {
		t.Errorf("got %v", err)
	}
}
