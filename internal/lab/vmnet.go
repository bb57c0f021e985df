package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/api"
)

const (
	controlPrefix = "ctl-"
	controlPort   = 7000
)

// controlAddress is the address of an end of a host's control link: 1 the switch's, 2 the host's. No other host sees it.
func controlAddress(n, end int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, byte(n), byte(end)}), 30)
}

// inSwitch runs f on a thread in the switch's network namespace. What it opens stays there.
func (l *Lab) inSwitch(f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		ns, err := os.Open(l.path(switchFile))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// makeTaps makes the ports of a machine on the switch: its cable, shaped as the record says, and its control link. They
// go when QEMU does.
func (l *Lab) makeTaps(r *record, n int) (taps []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, t := range taps {
				t.Close()
			}
		}
	}()
	h, err := l.openSwitch()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	for _, name := range []string{nameOf(n), controlPrefix + nameOf(n)} {
		if err := l.awaitNoLink(h, name); err != nil {
			return taps, err
		}
		var tap *os.File
		err := l.inSwitch(func() (err error) {
			tap, err = openTap(name)
			return err
		})
		if err != nil {
			return taps, fmt.Errorf("make port %s of the switch: %w", name, err)
		}
		taps = append(taps, tap)
	}
	if err := enslave(h, nameOf(n)); err != nil {
		return taps, err
	}
	control, err := h.LinkByName(controlPrefix + nameOf(n))
	if err != nil {
		return taps, err
	}
	if err := setAddress(h, control, controlAddress(n, 1)); err != nil {
		return taps, err
	}
	if err := h.LinkSetUp(control); err != nil {
		return taps, err
	}
	return taps, l.shapePort(r, nameOf(n))
}

// awaitNoLink waits until the port of the host's earlier life is gone: it goes with the last descriptor of its QEMU.
func (l *Lab) awaitNoLink(h *netlink.Handle, name string) error {
	for range 500 {
		if _, err := h.LinkByName(name); err != nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return api.Errorf(api.Unavailable, "port %s of the switch is still in use", name)
}

// openTap makes a tap device in the network namespace of the calling thread.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// dialAgent connects to the agent of a host.
func (l *Lab) dialAgent(ctx context.Context, n int) (*net.TCPConn, error) {
	var conn net.Conn
	err := l.inSwitch(func() (err error) {
		conn, err = dialControl(ctx, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func dialControl(ctx context.Context, n int) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp4", netip.AddrPortFrom(controlAddress(n, 2).Addr(), controlPort).String())
}

// forwardSpec is what the process that forwards a host's socket is told.
type forwardSpec struct {
	Number int    `json:"number"`
	Socket string `json:"socket"`
}

// startForward starts the process that hands connections to the host's socket on to its daemon. It lives as long as the
// host, in the network namespace of the switch.
func (l *Lab) startForward(n int, cgroup string) error {
	dir, err := os.Open(filepath.Join(cgroup, initLeaf))
	if err != nil {
		return err
	}
	defer dir.Close()
	spec, err := json.Marshal(forwardSpec{Number: n, Socket: l.socket(n)})
	if err != nil {
		return err
	}
	log, err := os.OpenFile(l.path(nameOf(n), "log", "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(l.binary(), "lab", "forward")
	cmd.Args[0] = "polder"
	cmd.Dir = "/"
	cmd.Env = []string{specVariable + "=" + string(spec)}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := l.inSwitch(cmd.Start); err != nil {
		return fmt.Errorf("start the process that forwards the socket: %w", err)
	}
	go func() { _ = cmd.Wait() }() // no zombie while this process lives
	return nil
}

// Forward hands every connection to a VM host's socket on the machine on to the daemon in the host. It is the hidden
// command `polder lab forward`, and runs until it is killed.
func Forward() error {
	var spec forwardSpec
	if err := json.Unmarshal([]byte(os.Getenv(specVariable)), &spec); err != nil {
		return api.Errorf(api.Invalid, "lab forward: it is only for polder lab up to run")
	}
	listener, err := net.Listen("unix", spec.Socket)
	if err != nil {
		return api.Errorf(api.Internal, "forward the socket of a lab host: %w", err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return api.Errorf(api.Internal, "forward the socket of a lab host: %w", err)
		}
		go forward(spec.Number, conn.(*net.UnixConn))
	}
}

func forward(n int, here *net.UnixConn) {
	defer here.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := dialControl(ctx, n)
	if err != nil {
		return
	}
	defer conn.Close()
	if json.NewEncoder(conn).Encode(request{Dial: daemonSocket}) == nil {
		join(here, conn.(*net.TCPConn))
	}
}

// stream is a connection with two directions that end one by one.
type stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// join copies both ways until both ends have said all.
func join(a, b stream) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(a, b)
		_ = a.CloseWrite()
	}()
	_, _ = io.Copy(b, a)
	_ = b.CloseWrite()
	<-done
}
