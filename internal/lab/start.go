package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"polder/api"
	"polder/client"
)

// hostSpec is all that the first process of a host needs to know; see enter.
type hostSpec struct {
	Name      string       `json:"name"`
	Dir       string       `json:"dir"`    // the host's own directory
	Lab       string       `json:"lab"`    // the lab's
	Lower     string       `json:"lower"`  // the root below the host's
	Cache     string       `json:"cache"`  // at /var/cache/polder
	Cgroup    string       `json:"cgroup"` // the host's, as the machine sees it
	MachineID string       `json:"machine_id"`
	Resolvers []netip.Addr `json:"resolvers"`
	Daemon    []string     `json:"daemon"`
	// QEMU is the command line of a host that is a virtual machine; then Lower and Dir, Lab and Cache are QEMU's.
	QEMU []string `json:"qemu,omitempty"`
}

// makeDirectories makes those of a host.
func (l *Lab) makeDirectories(n int, names ...string) error {
	for _, d := range names {
		dir := l.path(nameOf(n), d)
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = os.Chmod(dir, 0o755) // whatever the umask: upper is the host's /
		}
		if err != nil {
			return api.Errorf(api.Internal, "make lab host %s: %w", nameOf(n), err)
		}
	}
	return nil
}

// hostEnv is what a host needs of the lab to start.
type hostEnv struct {
	record  *record
	base    base
	outside outside
	uplink  bool
	daemon  []string // what PID 1 keeps running; empty: nothing
}

// startHost starts a host that is not running, up to the point where PID 1 has its root, its network and its daemon's
// command. When the caller dies before that, so does the host.
func (l *Lab) startHost(ctx context.Context, env hostEnv, n int) error {
	err := l.backend(env.record).spawn(ctx, env, n)
	if err == nil {
		return nil
	}
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err = errors.Join(err, l.killHost(cleanup, n))
	if api.KindOf(err) == api.Internal {
		return api.Errorf(api.Internal, "start lab host %s: %w", nameOf(n), err)
	}
	return err
}

func (b namespaces) spawn(ctx context.Context, env hostEnv, n int) error {
	l, name := b.l, nameOf(n)
	cgroup, err := l.clear(ctx, n)
	if err != nil {
		return err
	}
	spec := hostSpec{
		Name: name, Dir: l.path(name), Lab: l.dir, Lower: env.base.root, Cache: l.cache, Cgroup: cgroup,
		MachineID: machineID(l.id, name), Resolvers: env.outside.resolvers, Daemon: env.daemon,
	}
	if !env.uplink {
		spec.Resolvers = nil
	}
	first, err := l.clone(spec)
	if err != nil {
		return err
	}
	defer first.close()
	if err := l.connect(env.record, n, first.pid, env.uplink); err != nil {
		return err
	}
	return first.proceed()
}

// clear removes what is left of an earlier life of a host, and makes the cgroup of its next one.
func (l *Lab) clear(ctx context.Context, n int) (cgroup string, err error) {
	if err := l.killHost(ctx, n); err != nil {
		return "", err
	}
	if cgroup, err = l.cgroup(nameOf(n)); err != nil {
		return "", err
	}
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return "", err
	}
	if err := emptyDir(l.path(nameOf(n), "run")); err != nil { // as /run is after a boot
		return "", err
	}
	return cgroup, os.MkdirAll(filepath.Join(l.cache, "images"), 0o755)
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// first is the first process of a host, on its way to become PID 1.
type first struct {
	pid     int
	control *os.File // it waits for a byte here before it goes on, and gives up at the end of file
	status  *os.File // what went wrong; the end of file when it became PID 1
}

func (p *first) close() {
	p.control.Close()
	p.status.Close()
}

func (p *first) proceed() error {
	if _, err := p.control.Write([]byte("go")); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	p.control.Close()
	text, err := io.ReadAll(p.status)
	if err != nil {
		return err
	}
	if len(text) > 0 {
		return errors.New(strings.TrimSpace(string(text)))
	}
	return nil
}

// clone starts `polder lab enter` in new namespaces and in the host's cgroup; it has files from descriptor 5 on.
func (l *Lab) clone(spec hostSpec, files ...*os.File) (*first, error) {
	specText, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cgroup, err := os.Open(spec.Cgroup)
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	log, err := os.OpenFile(filepath.Join(spec.Dir, "log", "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	controlIn, control, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer controlIn.Close()
	status, statusOut, err := os.Pipe()
	if err != nil {
		control.Close()
		return nil, err
	}
	defer statusOut.Close()
	cmd := exec.Command(l.binary(), "lab", "enter")
	cmd.Args[0] = "polder"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), specVariable + "=" + string(specText)}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append([]*os.File{controlIn, statusOut}, files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		UseCgroupFD: true,
		CgroupFD:    int(cgroup.Fd()),
	}
	if err := cmd.Start(); err != nil {
		control.Close()
		status.Close()
		return nil, fmt.Errorf("start the first process: %w", err)
	}
	go func() { _ = cmd.Wait() }() // no zombie while this process lives
	return &first{pid: cmd.Process.Pid, control: control, status: status}, nil
}

// binary is the lab's copy of this program: a later build does not change it under the hosts' feet.
func (l *Lab) binary() string { return l.path("bin", "polder") }

// copyBinary renews the lab's copy of this program and says whether it had changed.
func (l *Lab) copyBinary() (changed bool, err error) {
	self, err := os.Executable()
	if err != nil {
		return false, api.Errorf(api.Internal, "find this program: %w", err)
	}
	info, err := os.Stat(self)
	if err != nil {
		return false, api.Errorf(api.Internal, "find this program: %w", err)
	}
	old, err := os.Stat(l.binary())
	if err == nil && (os.SameFile(old, info) || old.Size() == info.Size() && old.ModTime().Equal(info.ModTime())) {
		return false, nil
	}
	if err := copyFile(self, l.binary(), info); err != nil {
		return false, api.Errorf(api.Internal, "copy this program into the lab: %w", err)
	}
	return old != nil, nil
}

func copyFile(from, to string, info fs.FileInfo) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := os.Chtimes(to+".new", info.ModTime(), info.ModTime()); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

var errOldDaemon = errors.New("the one that was to be replaced is still there")

// waitReady waits until the host's daemon answers. old is when a daemon that is about to go made its socket: that one's
// answers do not count.
func (l *Lab) waitReady(ctx context.Context, n int, old time.Time) error {
	c, err := client.New("unix://" + l.socket(n))
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := c.Hosts(deadline)
		if err == nil && (old.IsZero() || !l.socketTime(n).Equal(old)) {
			return nil
		}
		if err == nil {
			err = errOldDaemon
		}
		select {
		case <-deadline.Done():
			if ctx.Err() != nil {
				return api.Errorf(api.Cancelled, "wait for the daemon of lab host %s: %w", nameOf(n), ctx.Err())
			}
			return api.Errorf(api.Unavailable, "the daemon of lab host %s does not answer: %w; the end of its log: %s", nameOf(n), err, l.logTail(n))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *Lab) logTail(n int) string {
	data, _ := os.ReadFile(l.path(nameOf(n), "log", daemonLog))
	if len(data) > 1000 {
		data = data[len(data)-1000:]
	}
	return strings.TrimSpace(string(data))
}

// socketTime is when a daemon made its socket: each makes its own. Zero when there is none.
func (l *Lab) socketTime(n int) time.Time {
	info, err := os.Lstat(l.socket(n))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func (l *Lab) socket(n int) string { return l.path(nameOf(n), "run", "polder.sock") }

// writeNames renews /etc/hosts of all hosts: one file, which they have by a bind mount, so it is written in place.
func (l *Lab) writeNames(r *record, o outside) error {
	numbers, err := l.hostNumbers()
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	for _, n := range numbers {
		v4, v6 := r.address(n)
		fmt.Fprintf(&b, "%s %s\n%s %s\n", v4.Addr(), nameOf(n), v6.Addr(), nameOf(n))
	}
	// The rules of the uplink are for these addresses; what a name server says another time may be others.
	for name, addrs := range o.mirrors {
		for _, a := range addrs {
			fmt.Fprintf(&b, "%s %s\n", a, name)
		}
	}
	if err := os.WriteFile(l.path("hosts"), []byte(b.String()), 0o644); err != nil {
		return api.Errorf(api.Internal, "write the names of the lab hosts: %w", err)
	}
	return nil
}
