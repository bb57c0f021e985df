package lab

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"polder/api"
	"polder/internal/command"
)

// A lab's processes are all in a cgroup below the machine's cgroup2 mount, from their first instant on:
//
//	polder-lab-ID/       killed as a whole at the end
//	  tools/             what commands that change the lab run
//	  h1/                the root of the host's cgroup namespace; its children get all controllers there are
//	    init/            PID 1, the daemon and what Exec runs: h1 itself must be empty to hand on controllers
const (
	cgroupPrefix = "polder-lab-"
	initLeaf     = "init"
	toolsLeaf    = "tools"
)

// cgroupMount finds the machine's cgroup2 mount: on a hybrid machine it is not at /sys/fs/cgroup.
func cgroupMount(mountinfo io.Reader) (string, error) {
	var found []string
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		// id parent major:minor root mountpoint options… - type source options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && len(fields) >= 5 && strings.HasPrefix(after, "cgroup2 ") && fields[3] == "/" {
			found = append(found, unescape(fields[4]))
		}
	}
	if err := lines.Err(); err != nil {
		return "", api.Errorf(api.Internal, "find the cgroup2 mount: %w", err)
	}
	if len(found) == 0 {
		return "", api.Errorf(api.Unsupported, "find the cgroup2 mount: there is none; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	return slices.MinFunc(found, func(a, b string) int { return len(a) - len(b) }), nil
}

// unescape undoes the octal escapes of /proc/*/mountinfo.
func unescape(s string) string {
	for _, e := range []struct{ code, char string }{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, e.code, e.char)
	}
	return s
}

func machineCgroup() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", api.Errorf(api.Internal, "find the cgroup2 mount: %w", err)
	}
	defer f.Close()
	return cgroupMount(f)
}

// cgroup is the directory of the lab's cgroup, or of one below it.
func (l *Lab) cgroup(elem ...string) (string, error) {
	mount, err := machineCgroup()
	if err != nil {
		return "", err
	}
	return filepath.Join(append([]string{mount, cgroupPrefix + l.id}, elem...)...), nil
}

// otherLabs says whether there are other labs on this machine.
func (l *Lab) otherLabs() bool {
	mount, err := machineCgroup()
	if err != nil {
		return false
	}
	all, _ := filepath.Glob(filepath.Join(mount, cgroupPrefix+"*"))
	return slices.ContainsFunc(all, func(dir string) bool { return filepath.Base(dir) != cgroupPrefix+l.id })
}

// makeCgroup makes the lab's cgroup and hands on to it every controller the machine has. What it switches on for the
// machine's root it writes to the record first.
func (l *Lab) makeCgroup(r *record) error {
	dir, err := l.cgroup()
	if err != nil {
		return err
	}
	root := filepath.Dir(dir)
	missing := controllers(root, "cgroup.controllers")
	for _, c := range controllers(root, "cgroup.subtree_control") {
		missing = slices.DeleteFunc(missing, func(m string) bool { return m == c })
	}
	if len(missing) > 0 {
		for _, c := range missing {
			if !slices.Contains(r.Controllers, c) {
				r.Controllers = append(r.Controllers, c)
			}
		}
		if err := l.writeRecord(r); err != nil {
			return err
		}
		handOn(root)
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return api.Errorf(api.Internal, "make the lab's cgroup: %w", err)
	}
	handOn(dir)
	return nil
}

// handOn gives the children of a cgroup every controller that it has itself. A controller that can't be handed on (the
// machine is a container, or v1 has it) is one the hosts don't have; they say so themselves.
func handOn(dir string) {
	for _, c := range controllers(dir, "cgroup.controllers") {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

func controllers(dir, file string) []string {
	data, _ := os.ReadFile(filepath.Join(dir, file))
	return strings.Fields(string(data))
}

// killCgroup kills every process in the cgroup and below, waits until they are gone, and removes it. One that is not
// there is no error.
func killCgroup(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var err error
	for range 1000 {
		// Again and again: a process may have been on its way into the cgroup.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return api.Errorf(api.Internal, "kill the processes of %s: %w", dir, err)
		}
		if err = removeCgroup(dir); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return api.Errorf(api.Cancelled, "wait for the end of the processes of %s: %w", dir, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return api.Errorf(api.Unavailable, "processes of %s were killed and don't end: %w; see: cat %s", dir, err, filepath.Join(dir, "cgroup.procs"))
}

// removeCgroup removes a cgroup and those below it. Processes in it make it fail.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// tool makes a command one that dies with the lab: when a lab command is killed, what it had started runs on for a while,
// and must not make anything after Down has looked for it.
func (l *Lab) tool(c command.Command) (command.Command, error) {
	dir, err := l.cgroup(toolsLeaf)
	if err != nil {
		return c, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return c, api.Errorf(api.Internal, "make the cgroup of the lab's tools: %w", err)
	}
	if _, err := command.Find(c.Name); err != nil {
		return c, err
	}
	const enter = `echo 0 >"$1/cgroup.procs" && shift && exec "$@"`
	c.Args = append([]string{"-c", enter, "sh", dir, c.Name}, c.Args...)
	c.Name = "sh"
	return c, nil
}

// initPID finds PID 1 of a host, as this process sees it; 0: the host is not running. A process that is still on its way
// to become PID 1 does not count: it ends by itself when the command that started it does.
func (l *Lab) initPID(name string) int {
	dir, err := l.cgroup(name, initLeaf)
	if err != nil {
		return 0
	}
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return 0
	}
	depth := len(nsPIDs("self"))
	for _, pid := range strings.Fields(string(data)) {
		// A VE's own first process is further down.
		argv, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		if ids := nsPIDs(pid); len(ids) == depth+1 && ids[depth] == "1" && (strings.HasPrefix(string(argv), "polder\x00lab\x00init\x00") || l.isUpMachine(name, string(argv))) {
			n, _ := strconv.Atoi(pid)
			return n
		}
	}
	return 0
}

// nsPIDs are the ids of a process in its pid namespace and those above it, as far as they are ours or below.
func nsPIDs(pid string) []string {
	data, _ := os.ReadFile("/proc/" + pid + "/status")
	for line := range strings.Lines(string(data)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return strings.Fields(ids)
		}
	}
	return nil
}
