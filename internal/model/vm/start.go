package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
	"polder/internal/model"
	"polder/internal/qmp"
)

// startPatience is how long QEMU may take from its start until it answers; it takes 0.1 s, more on a host that swaps.
const startPatience = 30 * time.Second

// leastMemory is what a PC's firmware needs to start anything.
const leastMemory = 16 * api.MiB

// Prepare checks the Spec, and makes the files that QEMU needs.
func (m *Model) Prepare(ctx context.Context, ve model.Spec) error {
	if err := m.prepare(ctx, ve); err != nil {
		return fmt.Errorf("prepare vm %q: %w", ve.Name, err)
	}
	return nil
}

func (m *Model) prepare(ctx context.Context, ve model.Spec) error {
	if err := check(ve); err != nil {
		return err
	}
	if err := os.MkdirAll(runDir(ve), 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(ve.LogPath(), os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_ = log.Close()
	if err := m.variables(ve); err != nil {
		return err
	}
	if err := writeSeed(ve); err != nil {
		return err
	}
	for _, path := range []string{runDir(ve), ve.LogPath(), varsFile(ve), seedFile(ve), ve.Root.Disk} {
		if err := os.Lchown(path, int(ve.IDBase), int(ve.IDBase)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Chmod(ve.Root.Disk, 0o600) // no other VE's user may read it
}

func check(ve model.Spec) error {
	switch {
	case ve.Root.Disk == "" || ve.Root.Format != "raw" && ve.Root.Format != "qcow2":
		return api.Errorf(api.Invalid, "a vm needs a disk, raw or qcow2; it has format %q at %q", ve.Root.Format, ve.Root.Disk)
	case !filepath.IsAbs(ve.Dir) || !filepath.IsAbs(ve.Root.Disk):
		return api.Errorf(api.Invalid, "paths of a vm must be absolute: %q, %q", ve.Dir, ve.Root.Disk)
	case ve.Memory < leastMemory:
		return api.Errorf(api.Invalid, "memory %s is less than %s, which a vm needs to start at all; a system needs 256MiB or more", ve.Memory, leastMemory)
	case ve.CPUs < 1 || ve.CPUs > 255:
		return api.Errorf(api.Invalid, "%d cpus: want 1 to 255", ve.CPUs)
	case ve.IDBase == 0 || len(ve.Cgroup) < 2 || ve.Cgroup[0] != '/':
		return api.Errorf(api.Invalid, "a vm needs a user and a cgroup of its own: user id %d, cgroup %q", ve.IDBase, ve.Cgroup)
	case len(ve.NICs) > 8:
		return api.Errorf(api.Invalid, "%d networks: a vm has at most 8", len(ve.NICs))
	}
	if info, err := os.Stat(ve.Root.Disk); err != nil {
		return fmt.Errorf("disk: %w", err)
	} else if !info.Mode().IsRegular() {
		return api.Errorf(api.Invalid, "disk %s is not a file", ve.Root.Disk)
	}
	return nil
}

// variables gives a VE with UEFI its own copy of the firmware's variables.
func (m *Model) variables(ve model.Spec) error {
	if ve.Firmware != api.UEFI {
		return nil
	}
	if _, err := os.Stat(varsFile(ve)); err == nil {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(m.cfg.Firmware, "OVMF_VARS_4M.fd"))
	if errors.Is(err, os.ErrNotExist) {
		return api.Errorf(api.Unsupported, "uefi: %s has no OVMF_VARS_4M.fd: apt-get install ovmf", m.cfg.Firmware)
	} else if err != nil {
		return err
	}
	if err := os.WriteFile(varsFile(ve)+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(varsFile(ve)+".new", varsFile(ve))
}

// Start starts QEMU and returns when it answers; the system inside boots meanwhile.
func (m *Model) Start(ctx context.Context, ve model.Spec) (model.Process, error) {
	p, err := m.start(ctx, ve)
	if err != nil {
		return model.Process{}, fmt.Errorf("start vm %q: %w", ve.Name, err)
	}
	return p, nil
}

func (m *Model) start(ctx context.Context, ve model.Spec) (model.Process, error) {
	if err := ctx.Err(); err != nil {
		return model.Process{}, err
	}
	if w, err := find(ve); err != nil {
		return model.Process{}, err
	} else if w != nil {
		return m.process(ve, w) // also one whose start was cut off: should it fail yet, its end says so
	}
	if err := m.clean(ctx, ve); err != nil {
		return model.Process{}, err
	}
	if err := m.prepare(ctx, ve); err != nil {
		return model.Process{}, err
	}
	w, err := m.launch(ctx, ve, m.offer())
	if err == nil {
		err = answers(ctx, ve, w)
	}
	if err != nil {
		return model.Process{}, errors.Join(err, m.tidyAfter(ctx, ve, w))
	}
	return m.process(ve, w)
}

// tidyAfter undoes a start that failed, also when ctx has ended. w is nil when QEMU was not started.
func (m *Model) tidyAfter(ctx context.Context, ve model.Spec, w *model.Watch) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startPatience)
	defer cancel()
	if w != nil {
		if err := w.Signal(syscall.SIGKILL); err != nil {
			return err
		}
		select {
		case <-w.Exited:
		case <-ctx.Done():
			return api.Errorf(api.Internal, "qemu (pid %d) can't be killed", w.PID)
		}
	}
	return m.clean(ctx, ve)
}

// launch starts the process. What it needs and may not open itself, it inherits.
func (m *Model) launch(ctx context.Context, ve model.Spec, offer offer) (*model.Watch, error) {
	machine, err := m.settle(ctx, ve)
	if err != nil {
		return nil, err
	}
	emulator, err := command.Find(m.cfg.QEMU)
	if err != nil {
		return nil, err
	}
	files, err := inherit(ctx, ve, offer)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if err := writeJSON(runningFile(ve), running{BootID: boot, Accelerator: accelName(offer.KVM), StartedAt: time.Now().UTC()}); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(qemuLog(ve), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cgroup, err := makeCgroup(ve)
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	cmd := exec.Command(emulator, arguments(ve, machine, offer)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true, // neither our terminal's nor our group's signals are its
		UseCgroupFD: true, CgroupFD: int(cgroup.Fd()),
		Credential: &syscall.Credential{Uid: ve.IDBase, Gid: ve.IDBase},
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", emulator, err)
	}
	// From here on the watch reaps it.
	w, err := model.WatchPID(cmd.Process.Pid)
	if err != nil {
		_, _ = cmd.Process.Wait()
		return nil, startFailure(ve, err)
	}
	return w, cmd.Process.Release()
}

func accelName(kvm bool) string {
	if kvm {
		return "kvm"
	}
	return "tcg"
}

func (m *Model) offer() offer {
	o := offer{KVM: m.cfg.KVM, Firmware: m.cfg.Firmware}
	if o.KVM {
		_, err := os.Stat("/dev/vhost-net")
		o.VhostNet = err == nil
	}
	return o
}

// answers waits until QEMU answers, which it does once the VE runs, or has ended.
func answers(ctx context.Context, ve model.Spec, w *model.Watch) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		c, err := qmp.Dial(ctx, qmpSocket(ve))
		if err == nil {
			c.Close()
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		if err == nil || ctx.Err() != nil {
			return err
		}
		// Its socket was closed: it is ending.
		select {
		case status := <-w.Exited:
			return startFailure(ve, errors.New(status.String()))
		case <-ctx.Done():
			return err
		}
	case status := <-w.Exited:
		cancel()
		<-answer //nolint:errcheck // why it was given up is known
		return startFailure(ve, errors.New(status.String()))
	}
}

// startFailure says what QEMU complained about.
func startFailure(ve model.Spec, err error) error {
	log, _ := os.ReadFile(qemuLog(ve))
	if len(log) > 2<<10 {
		log = log[len(log)-2<<10:]
	}
	return fmt.Errorf("qemu: %w: %s", err, log)
}

// inherit opens what QEMU gets as descriptors 3, 4, … in the order of fdQMP, fdConsole, fdAgent, fdMove, fdKVM, fdMemory, fdNIC.
func inherit(ctx context.Context, ve model.Spec, o offer) (files []*os.File, err error) {
	add := func(f *os.File, err error) error {
		if err == nil {
			files = append(files, f)
		}
		return err
	}
	for _, path := range []string{qmpSocket(ve), consoleSocket(ve), agentSocket(ve), moveSocket(ve)} {
		if err := add(listen(path)); err != nil {
			return files, err
		}
	}
	device := os.DevNull
	if o.KVM {
		device = "/dev/kvm"
	}
	if err := add(os.OpenFile(device, os.O_RDWR, 0)); err != nil {
		return files, err
	}
	if err := add(makeMemory(memorySize(ve))); err != nil {
		return files, err
	}
	for _, nic := range ve.NICs {
		if err := ve.Plug.Tap(ctx, nic, ve.IDBase); err != nil {
			return files, err
		}
		if err := add(openTap(nic.HostName)); err != nil {
			return files, fmt.Errorf("open tap %s: %w", nic.HostName, err)
		}
		if o.VhostNet {
			if err := add(os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)); err != nil {
				return files, err
			}
		}
	}
	return files, nil
}

// listen makes a unix socket that only root may connect to.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	// Not os.NewFile's poller: a tap is QEMU's to read.
	return os.NewFile(uintptr(fd), "tap:"+name+":"+strconv.Itoa(fd)), nil
}
