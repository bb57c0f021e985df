// Package criu is a client of the tool CRIU, which writes a tree of processes into image files and makes one of such files
// again: it starts the binary, speaks its RPC protocol (criu swrk, rpc.proto), and reads its log. It knows no VEs and has no
// policy: the options are the caller's.
//
// A Process serves one request. It is not killed when this program ends: what CRIU has begun it takes back by itself, while one
// that is killed in the middle leaves foreign code in the processes that it was dumping. Not safe for concurrent use.
package criu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
)

// Process is a criu that waits for its request, or serves it.
type Process struct {
	cmd    *exec.Cmd
	socket *os.File
}

// Options of Start.
type Options struct {
	// Cgroup is the directory of the control group that criu begins in; nil: our own.
	Cgroup *os.File
	// Files are inherited: the first is FirstFile, and so on. The caller closes them after Start.
	Files []*os.File
	// Path is where criu looks for the tools that it runs; "": in the usual places.
	Path string
}

// priority of criu, as setpriority(2) counts: before all that has none of its own.
const priority = -15

// FirstFile is the descriptor that the first of Options.Files has in criu.
const FirstFile = 4

// Start starts a criu. The caller ends it with Close.
func Start(o Options) (*Process, error) {
	path, err := command.Find("criu")
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start criu: %w", err)
	}
	// Non-blocking, so that os.NewFile hands it to the runtime's poller and it has deadlines.
	_ = unix.SetNonblock(fds[0], true)
	ours, theirs := os.NewFile(uintptr(fds[0]), "criu"), os.NewFile(uintptr(fds[1]), "criu")
	defer theirs.Close()
	cmd := exec.Command(path, "swrk", "3")
	cmd.ExtraFiles = append([]*os.File{theirs}, o.Files...)
	if o.Path == "" {
		o.Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	cmd.Env = []string{"PATH=" + o.Path, "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if o.Cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(o.Cgroup.Fd())
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start criu: %w", err), ours.Close())
	}
	// While criu works something stands still. Processes that it makes get back the priority that they had.
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, priority)
	// Where the kernel shares out by session first (sched(7), "autogroup"), that of the session counts.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid), []byte(strconv.Itoa(priority)), 0)
	return &Process{cmd: cmd, socket: ours}, nil
}

// closeWait is how long a criu whose client has gone may take to end.
const closeWait = 20 * time.Second

// Close lets criu go: one that still serves a request fails at its next word to us, takes back what it did, and ends. It blocks
// until then. Only one that hangs is killed.
func (p *Process) Close() error {
	err := p.socket.Close()
	timer := time.AfterFunc(closeWait, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	// How it ended was told by its answer, or does not matter.
	_ = p.cmd.Wait()
	slog.Debug("criu has ended", "user", p.cmd.ProcessState.UserTime(), "system", p.cmd.ProcessState.SystemTime())
	return err
}

// Notify is told what criu is about to do ("post-setup-namespaces", "pre-resume", …: see "criu help action-script") while it
// waits. pid is the first process's, where there is one. An error makes criu fail, up to "post-restore".
type Notify func(action string, pid int) error

// Dump writes the processes' images. It blocks until criu has answered or ctx ends; what was asked for before goes on then, up
// to Close.
func (p *Process) Dump(ctx context.Context, o *rpc.CriuOpts, notify Notify) error {
	_, err := p.do(ctx, rpc.CriuReqType_DUMP, o, notify)
	return err
}

// Restore makes processes of images and returns the pid of the first.
func (p *Process) Restore(ctx context.Context, o *rpc.CriuOpts, notify Notify) (pid int, err error) {
	answer, err := p.do(ctx, rpc.CriuReqType_RESTORE, o, notify)
	if err != nil {
		return 0, err
	}
	return int(answer.GetRestore().GetPid()), nil
}

func (p *Process) do(ctx context.Context, kind rpc.CriuReqType, o *rpc.CriuOpts, notify Notify) (*rpc.CriuResp, error) {
	scripts := notify != nil
	o.NotifyScripts = &scripts
	answer, err := p.exchange(ctx, &rpc.CriuReq{Type: &kind, Opts: o})
	for err == nil && answer.GetType() == rpc.CriuReqType_NOTIFY {
		failed := notify(answer.GetNotify().GetScript(), int(answer.GetNotify().GetPid()))
		good := failed == nil
		answer, err = p.exchange(ctx, &rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: &good})
		err = errors.Join(failed, err)
	}
	if err != nil {
		return nil, err
	}
	if answer.GetType() != kind || !answer.GetSuccess() {
		return nil, failure(o, answer)
	}
	return answer, nil
}

// answerSize is more than any answer has: a log line, and numbers.
const answerSize = 64 << 10

func (p *Process) exchange(ctx context.Context, request *rpc.CriuReq) (*rpc.CriuResp, error) {
	message, err := request.MarshalVT()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.socket.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := p.socket.Write(message); err != nil {
		return nil, p.lost(ctx, err)
	}
	buffer := make([]byte, answerSize)
	n, err := p.socket.Read(buffer)
	if err != nil {
		return nil, p.lost(ctx, err)
	}
	var answer rpc.CriuResp
	if err := answer.UnmarshalVT(buffer[:n]); err != nil {
		return nil, fmt.Errorf("answer of criu: %w", err)
	}
	return &answer, nil
}

func (p *Process) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return api.Errorf(api.Unavailable, "criu (pid %d) ended without an answer: %w", p.cmd.Process.Pid, err)
}

// failure says why criu failed, in its own words.
func failure(o *rpc.CriuOpts, answer *rpc.CriuResp) error {
	words := ""
	if o.GetLogFile() != "" {
		log, _ := os.ReadFile(filepath.Join(o.GetImagesDir(), o.GetLogFile()))
		words = Complaints(log)
	}
	if words == "" {
		words = answer.GetCrErrmsg()
	}
	if words == "" && answer.GetCrErrno() != 0 {
		words = unix.Errno(answer.GetCrErrno()).Error()
	}
	if words == "" {
		words = "it did not say why"
	}
	return api.Errorf(api.Precondition, "criu: %s", words)
}

// complaintsLimit is how many of a log's complaints are told: the first ones say why, the last what came of it.
const complaintsLimit = 4

// Complaints are the lines of a CRIU log that say what went wrong, without where in CRIU, joined by "; ".
func Complaints(log []byte) string {
	var all []string
	for line := range bytes.Lines(log) {
		_, text, found := bytes.Cut(line, []byte("Error ("))
		if !found {
			continue
		}
		// "(00.031337) Error (criu/files.c:1234): words": the place has no parenthesis in it.
		if _, words, ok := bytes.Cut(text, []byte("): ")); ok {
			text = words
		}
		if bytes.Contains(text, []byte("Can't setup RLIMIT_NOFILE")) || bytes.Contains(text, []byte("tables")) && (bytes.Contains(text, []byte("-V failed")) || bytes.HasPrefix(text, []byte("execvp("))) {
			continue // it does without
		}
		words := strings.TrimSpace(string(bytes.ToValidUTF8(text, []byte("?"))))
		if words == "" || len(all) > 0 && all[len(all)-1] == words {
			continue
		}
		all = append(all, words)
	}
	if len(all) > complaintsLimit {
		all = append(all[:complaintsLimit-1], "… ("+strconv.Itoa(len(all)-complaintsLimit+1)+" more)")
	}
	return strings.Join(all, "; ")
}

// Version is criu's version, such as "4.2.1".
func Version(ctx context.Context) (string, error) {
	out, err := command.Run(ctx, nil, "criu", "--version")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(line, "Version: "); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("criu --version said %q", out)
}
