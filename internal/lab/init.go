package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"polder/api"
)

// daemonVariable hands PID 1 its daemon's command line. In its own command line, a search for the daemon would find it.
const daemonVariable = "POLDER_LAB_DAEMON"

const (
	respawnDelay = 200 * time.Millisecond
	respawnMost  = 5 * time.Second
	// settled is how long a daemon must have run for its next start to be prompt.
	settled = time.Second
)

// reaper is PID 1 of a host: it reaps every process that ends and keeps the daemon running. One goroutine, save for
// spawn and restart, which others may call.
type reaper struct {
	argv    []string
	env     []string
	log     *os.File
	pid     int // of the daemon; 0: not running
	started time.Time
	delay   time.Duration
	ending  bool
	signals chan os.Signal

	mu      sync.Mutex // guards what follows
	waiting map[int]chan<- syscall.WaitStatus
	ended   []chan<- struct{} // to be closed at the end of the daemon
}

// Init is PID 1 of a host (the hidden command `polder lab init`). SIGTERM ends the daemon, then the host; SIGHUP restarts
// the daemon. What the daemon leaves behind when it dies (VEs) lives on.
func Init() error {
	var argv []string
	if os.Getpid() != 1 || json.Unmarshal([]byte(os.Getenv(daemonVariable)), &argv) != nil {
		return api.Errorf(api.Invalid, "lab init: it is only for polder lab up to run")
	}
	os.Unsetenv(daemonVariable)
	r, err := newReaper(argv)
	if err != nil {
		return err
	}
	r.run(r.signals)
	return nil
}

func newReaper(argv []string) (*reaper, error) {
	log, err := os.OpenFile(filepath.Join("/var/log/polder", daemonLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, api.Errorf(api.Internal, "open the daemon's log: %w", err)
	}
	// A child may end before anybody asks; the first signal must not be lost.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return &reaper{argv: argv, env: os.Environ(), log: log, signals: signals, waiting: map[int]chan<- syscall.WaitStatus{}}, nil
}

// spawn starts a process; the channel gets how it ended.
func (r *reaper) spawn(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock() // reap must not miss it
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	r.waiting[pid] = ended
	return pid, ended, nil
}

// restart ends the daemon, and returns when it has ended. The next one is started by and by.
func (r *reaper) restart() {
	ended := make(chan struct{})
	r.mu.Lock()
	r.ended = append(r.ended, ended)
	r.mu.Unlock()
	r.signals <- syscall.SIGHUP
	<-ended
}

// tell hands on that a process has ended.
func (r *reaper) tell(pid int, status syscall.WaitStatus, daemon bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ended, ok := r.waiting[pid]; ok {
		ended <- status
		delete(r.waiting, pid)
	}
	if daemon {
		for _, ended := range r.ended {
			close(ended)
		}
		r.ended = nil
	}
}

func (r *reaper) run(signals <-chan os.Signal) {
	next := time.NewTimer(0)
	for {
		select {
		case <-next.C:
			if r.pid == 0 && !r.ending && len(r.argv) > 0 {
				r.start()
				if r.pid == 0 {
					next.Reset(r.delay)
				}
			}
		case s := <-signals:
			switch s {
			case syscall.SIGCHLD:
				if r.reap() {
					next.Reset(r.delay)
				}
			case syscall.SIGHUP:
				r.kill(syscall.SIGTERM)
				if r.pid == 0 {
					r.tell(0, 0, true)
				}
			default:
				r.ending = true
				r.kill(syscall.SIGTERM)
			}
		}
		if r.ending && r.pid == 0 {
			return
		}
	}
}

func (r *reaper) start() {
	r.started = time.Now()
	path, err := exec.LookPath(r.argv[0])
	if err == nil {
		var null *os.File
		if null, err = os.Open(os.DevNull); err == nil {
			r.pid, err = syscall.ForkExec(path, r.argv, &syscall.ProcAttr{
				Dir:   "/",
				Env:   r.env,
				Files: []uintptr{null.Fd(), r.log.Fd(), r.log.Fd()},
				Sys:   &syscall.SysProcAttr{Setsid: true},
			})
			null.Close()
		}
	}
	if err != nil {
		r.pid = 0
		r.backOff()
		slog.Error("start the daemon", "argv", r.argv, "error", err)
	}
}

// reap collects every process that has ended and says whether the daemon was among them.
func (r *reaper) reap() (daemon bool) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return daemon
		}
		r.tell(pid, status, pid == r.pid)
		if pid == r.pid {
			r.pid = 0
			daemon = true
			r.backOff()
			fmt.Fprintf(r.log, "polder lab init: the daemon (pid %d) ended: %s\n", pid, describe(status))
		}
	}
}

// backOff sets the delay before the next start: short after a crash, longer and longer for one that does not come up.
func (r *reaper) backOff() {
	if time.Since(r.started) >= settled {
		r.delay = 0
	}
	r.delay = min(max(respawnDelay, 2*r.delay), respawnMost)
}

func (r *reaper) kill(s syscall.Signal) {
	if r.pid != 0 {
		_ = syscall.Kill(r.pid, s)
	}
}

func describe(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "killed by " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}
