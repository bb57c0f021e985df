package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"polder/internal/command"
)

// recipe is all that starting QEMU by hand takes, in the lab's host.
type recipe struct {
	Argv    []string          `json:"argv"`
	UID     uint32            `json:"uid"`
	Files   []string          `json:"files"` // what it inherits from descriptor 3 on: see open
	Replace map[string]string `json:"replace"`
	Dir     string            `json:"dir"` // its own, with pristine.raw in it
	Bridge  string            `json:"bridge"`
}

// handTap is the tap of the one that is started by hand.
const handTap = "bench-tap"

var descriptor = regexp.MustCompile(`fd=([0-9]+)`)

// take reads from a process of Polder's how it was started.
func (r *recipe) take(pid int) error {
	r.Argv = argv(pid)
	last := 0
	for i, arg := range r.Argv {
		for _, m := range descriptor.FindAllStringSubmatch(arg, -1) {
			n, _ := strconv.Atoi(m[1])
			last = max(last, n)
		}
		for old, own := range r.Replace {
			r.Argv[i] = strings.ReplaceAll(r.Argv[i], old, own)
		}
	}
	sockets := []string{"qmp", "console", "agent"}
	for n := 3; n <= last; n++ {
		what, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, n))
		if err != nil {
			return err
		}
		if strings.HasPrefix(what, "socket:") {
			if len(sockets) == 0 {
				return fmt.Errorf("qemu's descriptor %d is one socket more than is known", n)
			}
			what, sockets = "socket:"+sockets[0], sockets[1:]
		}
		r.Files = append(r.Files, what)
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err == nil {
		r.UID = info.Sys().(*syscall.Stat_t).Uid
	}
	return err
}

// qemuOnce runs a recipe until the guest agent answers, kills QEMU and prints the seconds that it took.
func qemuOnce(ctx context.Context, path string) (err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r recipe
	if err := json.Unmarshal(content, &r); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.clear(context.WithoutCancel(ctx))) }()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	files, err := r.open()
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, r.Argv[0], r.Argv[1:]...)
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: r.UID, Gid: r.UID},
		Pdeathsig:  syscall.SIGKILL,
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	agent, err := awaitAgent(ctx, r.socket("agent"))
	took := time.Since(began)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		return err
	}
	agent.Close()
	fmt.Println(took.Seconds())
	return nil
}

func (r *recipe) socket(name string) string { return filepath.Join(r.Dir, "run", name) }

// prepare makes the files and the tap that QEMU will find.
func (r *recipe) prepare(ctx context.Context) error {
	if err := r.clear(ctx); err != nil { // of one that was killed
		return err
	}
	disk, log := filepath.Join(r.Dir, "disk.raw"), filepath.Join(r.Dir, "console.log")
	if _, err := command.Run(ctx, nil, "cp", "--reflink=always", filepath.Join(r.Dir, "pristine.raw"), disk); err != nil {
		return err
	}
	err := errors.Join(os.Mkdir(filepath.Join(r.Dir, "run"), 0o700), os.WriteFile(log, nil, 0o600))
	if err != nil {
		return err
	}
	for _, path := range []string{disk, log, filepath.Join(r.Dir, "run")} {
		if err := os.Chown(path, int(r.UID), int(r.UID)); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"tuntap", "add", handTap, "mode", "tap", "vnet_hdr", "user", strconv.Itoa(int(r.UID))},
		{"link", "set", handTap, "master", r.Bridge, "up"},
	} {
		if _, err := command.Run(ctx, nil, "ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// clear removes all but the pristine disk.
func (r *recipe) clear(ctx context.Context) error {
	if links, err := command.Run(ctx, nil, "ip", "-o", "link", "show"); err != nil {
		return err
	} else if strings.Contains(string(links), handTap+":") {
		if _, err := command.Run(ctx, nil, "ip", "link", "delete", handTap); err != nil {
			return err
		}
	}
	for _, name := range []string{"disk.raw", "console.log", "run"} {
		if err := os.RemoveAll(filepath.Join(r.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// open opens what QEMU inherits: its sockets, its tap, devices by their path.
func (r *recipe) open() (files []*os.File, err error) {
	for _, what := range r.Files {
		var f *os.File
		name, isSocket := strings.CutPrefix(what, "socket:")
		switch {
		case isSocket:
			f, err = listen(r.socket(name))
		case what == "/dev/net/tun":
			f, err = openTap()
		default:
			f, err = os.OpenFile(what, os.O_RDWR, 0)
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}

func openTap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(handTap)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), handTap), nil
}
