package lab

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// The lab talks with a VM host over TCP, on a link of their own: it connects, and sends one request as a line of JSON.
// Then come, for
//
//	now, restart   an answer as a line of JSON
//	dial           the bytes of the connection to a socket in the host
//	exec           messages both ways, encoded by gob, until the one with Ended

// request is what the lab wants; exactly one field is set.
type request struct {
	Now     int64        `json:"now,omitempty"` // nanoseconds since 1970: the host's clock is to be set
	Restart bool         `json:"restart,omitempty"`
	Dial    string       `json:"dial,omitempty"` // path of a socket
	Exec    *execRequest `json:"exec,omitempty"`
}

// answer ends a request that is none of a stream.
type answer struct {
	Error string `json:"error,omitempty"`
}

type execRequest struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	TTY  *ttySize `json:"tty,omitempty"`
}

type ttySize struct {
	Rows, Cols uint16
}

// message is one of a running command. One of its fields is set, or the last two.
type message struct {
	Stdin    []byte
	StdinEnd bool
	Stdout   []byte
	Stderr   []byte
	Signal   int
	Resize   *ttySize
	Ended    bool // the last one
	Code     int  // the exit code, 128 and more for a signal
}

// daemonSocket is where the daemon of a host listens.
const daemonSocket = "/run/polder/polder.sock"

// drainTime is how long output is read on when the command has ended but something that it left behind could write more.
const drainTime = 200 * time.Millisecond

// agent does in a VM host what the lab asks for. Each connection has a goroutine; processes are the reaper's.
type agent struct {
	reaper *reaper
}

func (a *agent) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go a.handle(conn.(*net.TCPConn))
	}
}

func (a *agent) handle(conn *net.TCPConn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	line, err := in.ReadBytes('\n')
	var req request
	if err != nil || json.Unmarshal(line, &req) != nil {
		return
	}
	switch {
	case req.Exec != nil:
		a.exec(conn, in, req.Exec)
	case req.Dial != "":
		there, err := net.Dial("unix", req.Dial)
		if err != nil {
			return
		}
		defer there.Close()
		join(buffered{in, conn}, there.(*net.UnixConn))
	case req.Restart:
		a.reaper.restart()
		reply(conn, nil)
	default:
		t := unix.NsecToTimespec(req.Now)
		reply(conn, unix.ClockSettime(unix.CLOCK_REALTIME, &t))
	}
}

func reply(conn io.Writer, err error) {
	var a answer
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(a)
}

// buffered is a connection of which something was read ahead. It does not embed it: io.Copy would find a way around in.
type buffered struct {
	in   io.Reader
	conn *net.TCPConn
}

func (b buffered) Read(p []byte) (int, error)  { return b.in.Read(p) }
func (b buffered) Write(p []byte) (int, error) { return b.conn.Write(p) }
func (b buffered) Close() error                { return b.conn.Close() }
func (b buffered) CloseWrite() error           { return b.conn.CloseWrite() }

// sender lets several goroutines send messages.
type sender struct {
	mu  sync.Mutex // guards enc
	enc *gob.Encoder
}

func (s *sender) send(m message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enc.Encode(m)
}

// exec runs a command, and kills it when the connection ends.
func (a *agent) exec(conn *net.TCPConn, in io.Reader, req *execRequest) {
	out := &sender{enc: gob.NewEncoder(conn)}
	p, err := startProcess(a.reaper, req)
	if err != nil {
		code := 126
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			code = 127
		}
		_ = out.send(message{Stderr: fmt.Appendf(nil, "%v\n", err)})
		_ = out.send(message{Ended: true, Code: code})
		return
	}
	defer p.close()
	go p.receive(gob.NewDecoder(in))
	var copying sync.WaitGroup
	for _, from := range p.output {
		copying.Go(func() { from.copyTo(out) })
	}
	status := <-p.ended
	copied := make(chan struct{})
	go func() {
		copying.Wait()
		close(copied)
	}()
	select {
	case <-copied:
	case <-time.After(drainTime):
	}
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	_ = out.send(message{Ended: true, Code: code})
}

// process is a command that runs for the lab.
type process struct {
	pid    int
	ended  <-chan syscall.WaitStatus
	input  *os.File
	output []output
	tty    bool
}

type output struct {
	file   *os.File
	stderr bool
}

func startProcess(r *reaper, req *execRequest) (*process, error) {
	if len(req.Argv) == 0 {
		return nil, errors.New("no command")
	}
	path, err := exec.LookPath(req.Argv[0])
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{Dir: "/", Env: req.Env, Sys: &syscall.SysProcAttr{}}
	p := &process{tty: req.TTY != nil}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	if p.tty {
		ours, tty, err := pty.Open()
		if err != nil {
			return nil, err
		}
		theirs = []*os.File{tty}
		p.input, p.output = ours, []output{{file: ours}}
		_ = pty.Setsize(ours, &pty.Winsize{Rows: req.TTY.Rows, Cols: req.TTY.Cols})
		attr.Files = []uintptr{tty.Fd(), tty.Fd(), tty.Fd()}
		attr.Sys.Setsid, attr.Sys.Setctty = true, true
	} else {
		var files [3][2]*os.File
		for i := range files {
			r, w, err := os.Pipe()
			if err != nil {
				p.close()
				return nil, err
			}
			files[i] = [2]*os.File{r, w}
			theirs = append(theirs, files[i][min(i, 1)])
			if i == 0 {
				p.input = w
			} else {
				p.output = append(p.output, output{file: r, stderr: i == 2})
			}
		}
		attr.Files = []uintptr{theirs[0].Fd(), theirs[1].Fd(), theirs[2].Fd()}
	}
	p.pid, p.ended, err = r.spawn(path, req.Argv, attr)
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *process) close() {
	if p.input != nil {
		p.input.Close()
	}
	for _, o := range p.output {
		o.file.Close()
	}
}

// receive does what the other side sends. Its end kills the command: there is nobody left to wait for it.
func (p *process) receive(in *gob.Decoder) {
	for {
		var m message
		if err := in.Decode(&m); err != nil {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
			return
		}
		switch {
		case m.Signal != 0:
			_ = syscall.Kill(p.pid, syscall.Signal(m.Signal))
		case m.Resize != nil && p.tty:
			_ = pty.Setsize(p.input, &pty.Winsize{Rows: m.Resize.Rows, Cols: m.Resize.Cols})
		case m.StdinEnd && !p.tty:
			p.input.Close()
		case len(m.Stdin) > 0:
			_, _ = p.input.Write(m.Stdin) // a command that does not want it is none of ours
		}
	}
}

func (o output) copyTo(s *sender) {
	buf := make([]byte, 32<<10)
	for {
		n, err := o.file.Read(buf)
		if n > 0 {
			m := message{Stdout: buf[:n]}
			if o.stderr {
				m = message{Stderr: buf[:n]}
			}
			if s.send(m) != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
