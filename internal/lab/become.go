package lab

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"polder/api"
)

// In a VM host, before its root is made: see boot/second.sh.
const (
	bootLab    = "/lab"   // the lab's directory
	bootDisk   = "/mnt"   // the host's disk: what it writes to its root, and /var/lib/polder
	bootRoot   = "/media" // the root that it is about to have
	bootImages = "images" // tag of the machine's directory of images
)

// Become makes a copy of the saved machine the host of the given name, and is its PID 1 from then on. It is the hidden
// command `polder lab become`.
func Become(name string) error {
	if os.Getpid() != 1 || !hostName.MatchString(name) {
		return api.Errorf(api.Invalid, "lab become: it is only for the machine of a lab host to run")
	}
	err := become(name)
	fmt.Fprintf(os.Stderr, "polder lab become: %v\n", err)
	return err
}

func become(name string) error {
	data, err := os.ReadFile(filepath.Join(bootLab, name, identityFile))
	if err != nil {
		return err
	}
	var g identity
	if err := json.Unmarshal(data, &g); err != nil {
		return err
	}
	// Before anything can leave the host: what the saved machine would have done a second time.
	if err := g.mend(); err != nil {
		return err
	}
	if err := g.mountRoot(); err != nil {
		return err
	}
	if err := writeFiles(g.Host, bootRoot); err != nil {
		return err
	}
	listener, err := g.connect()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := pivot(bootRoot); err != nil {
		return err
	}
	if err := g.mountPool(); err != nil {
		return err
	}
	if err := leaveRootCgroup(); err != nil {
		return fmt.Errorf("enter the cgroup: %w", err)
	}
	os.Clearenv()
	for key, value := range map[string]string{"PATH": hostPath, "HOME": "/root", "LANG": "C.UTF-8"} {
		os.Setenv(key, value)
	}
	r, err := newReaper(g.Host.Daemon)
	if err != nil {
		return err
	}
	go (&agent{reaper: r}).serve(listener)
	r.run(r.signals)
	return errors.New("asked to end")
}

// mend makes new what all copies of the saved machine have alike.
func (g identity) mend() error {
	t := unix.NsecToTimespec(g.Time.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &t); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	if err := seed(g.Seed); err != nil {
		return fmt.Errorf("seed the random numbers: %w", err)
	}
	if err := unix.Sethostname([]byte(g.Name)); err != nil {
		return fmt.Errorf("set the host's name: %w", err)
	}
	return nil
}

// seed gives the kernel's random number generator what no other host has.
func seed(random []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info of linux/random.h: entropy in bits, size in bytes, and the bytes.
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(random)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(random)))
	info = append(info, random...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return errno
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0)
}

// flush makes the kernel forget what it read of a disk when there was another one in its place.
func flush(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return &os.PathError{Op: "flush", Path: device, Err: err}
	}
	return nil
}

// mountRoot builds the host's file systems at bootRoot.
func (g identity) mountRoot() error {
	for _, disk := range []string{"/dev/vdb", "/dev/vdc"} {
		if err := flush(disk); err != nil {
			return err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("/dev/vdb", bootDisk, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount the host's disk: %w", err)
	}
	upper, work, data := filepath.Join(bootDisk, "upper"), filepath.Join(bootDisk, "work"), filepath.Join(bootDisk, "data")
	for _, d := range []string{upper, work, data} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	layers := "lowerdir=/,upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", bootRoot, "overlay", 0, layers); err != nil {
		return fmt.Errorf("mount the root (%s): %w", layers, err)
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	own := filepath.Join(bootLab, g.Name)
	for _, m := range []mount{
		{"proc", "proc", "proc", safe, ""},
		{"sysfs", "sys", "sysfs", safe, ""},
		{"cgroup2", "sys/fs/cgroup", "cgroup2", safe, ""},
		{"devtmpfs", "dev", "devtmpfs", unix.MS_NOSUID, ""},
		{"devpts", "dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "ptmxmode=0666,mode=620,gid=5"},
		{"tmpfs", "dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "dev/mqueue", "mqueue", safe, ""},
		{"tmpfs", "run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		bind(data, "var/lib/polder"),
		bind(filepath.Join(own, "log"), "var/log/polder"),
		bind(filepath.Join(bootLab, "shared"), "shared"),
		bindReadOnly(filepath.Join(bootLab, "bin"), hostBin),
		bindReadOnly(filepath.Join(bootLab, "hosts"), "etc/hosts"),
		{bootImages, "var/cache/polder/images", "9p", 0, "trans=virtio,version=9p2000.L,msize=512000,cache=readahead"},
	} {
		if err := m.mount(bootRoot); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(bootRoot, "run/polder"), 0o755)
}

// mountPool mounts the host's pool. A disk without a file system gets one.
func (g identity) mountPool() error {
	const device, target = "/dev/vdc", "/var/lib/polder/pools/default"
	made, err := hasFileSystem(device)
	if err != nil {
		return err
	}
	if !made {
		cmd := exec.Command("mkfs.btrfs", "--quiet", "--force", "--nodiscard", "--label", "pool", "--byte-count", fmt.Sprint(int64(g.PoolSize)), device)
		cmd.Env = []string{"PATH=" + hostPath}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, target, "btrfs", 0, ""); err != nil {
		return fmt.Errorf("mount the pool: %w", err)
	}
	return nil
}

// leaveRootCgroup gives VEs all controllers, in cgroups beside that of PID 1, the daemon and what the agent runs.
func leaveRootCgroup() error {
	const root = "/sys/fs/cgroup"
	leaf := filepath.Join(root, initLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	handOn(root)
	return nil
}

// connect gives the host its eth0, and hides the link to the lab in a network namespace that only the agent listens in.
func (g identity) connect() (net.Listener, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if err := setUp(h, "lo"); err != nil {
		return nil, err
	}
	if err := g.connectCable(h); err != nil {
		return nil, err
	}
	control, err := h.LinkByName("eth1")
	if err != nil {
		return nil, err
	}
	var listener net.Listener
	done := make(chan error)
	go func() {
		// Never unlocked: the thread is in the new namespace and ends with the goroutine.
		runtime.LockOSThread()
		var err error
		listener, err = g.listen(h, control)
		done <- err
	}()
	err = <-done
	return listener, err
}

func (g identity) connectCable(h *netlink.Handle) error {
	link, err := h.LinkByName(hostLink)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(g.MAC)
	if err != nil {
		return err
	}
	if err := h.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("set the address of %s: %w", hostLink, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range g.Network {
		p, err := netip.ParsePrefix(a)
		if err == nil {
			err = setAddress(h, link, p)
		}
		if err != nil {
			return err
		}
	}
	if g.Gateway == "" {
		return nil
	}
	gateway, err := netip.ParseAddr(g.Gateway)
	if err != nil {
		return err
	}
	return h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
}

// listen moves the calling thread and the link to a new network namespace, which lives as long as the listener.
func (g identity) listen(h *netlink.Handle, link netlink.Link) (net.Listener, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := h.LinkSetNsFd(link, int(ns)); err != nil {
		return nil, err
	}
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	p, err := netip.ParsePrefix(g.Control)
	if err != nil {
		return nil, err
	}
	if err := setAddress(inside, link, p); err != nil {
		return nil, err
	}
	if err := inside.LinkSetUp(link); err != nil {
		return nil, err
	}
	return net.Listen("tcp4", netip.AddrPortFrom(p.Addr(), controlPort).String())
}
