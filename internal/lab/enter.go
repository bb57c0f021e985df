package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"polder/api"
)

// specVariable hands the host's description to its first process; see enter. The command line would show it in ps.
const specVariable = "POLDER_LAB_HOST"

const (
	hostBin     = "/opt/polder/bin" // where hosts have the lab's copy of this program
	daemonLog   = "serve.log"
	controlFile = 3
	statusFile  = 4
	hostPath    = hostBin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Enter is the first process of a host, in new namespaces but with the machine's root: it builds the host's root around
// itself, waits for the word to go on, and becomes PID 1. It is the hidden command `polder lab enter`, and returns only
// when it failed; its caller reads why from file 4.
func Enter() error {
	text := os.Getenv(specVariable)
	if text == "" || os.Getpid() != 1 {
		return api.Errorf(api.Invalid, "lab enter: it is only for polder lab up to run")
	}
	control, status := os.NewFile(controlFile, "control"), os.NewFile(statusFile, "status")
	unix.CloseOnExec(controlFile)
	unix.CloseOnExec(statusFile)
	var spec hostSpec
	err := json.Unmarshal([]byte(text), &spec)
	if err == nil {
		// The cgroup namespace is the calling thread's, and the exec at the end keeps that of the calling thread.
		runtime.LockOSThread()
		err = enter(spec, control)
	}
	fmt.Fprintln(status, err)
	return err
}

func enter(spec hostSpec, control *os.File) error {
	if err := enterCgroup(spec.Cgroup); err != nil {
		return fmt.Errorf("enter the cgroup: %w", err)
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("set the host's name: %w", err)
	}
	root := filepath.Join(spec.Dir, "root")
	if len(spec.QEMU) > 0 {
		return enterMachine(spec, root, control)
	}
	if err := mountRoot(spec, root); err != nil {
		return err
	}
	if err := writeFiles(spec, root); err != nil {
		return err
	}
	if err := mountPool(filepath.Join(spec.Dir, poolFile), root, "var/lib/polder/pools/default"); err != nil {
		return err
	}
	if _, err := control.Read(make([]byte, 2)); err != nil {
		return fmt.Errorf("the command that started the host ended: %w", err)
	}
	if err := pivot(root); err != nil {
		return err
	}
	daemon, err := json.Marshal(spec.Daemon)
	if err != nil {
		return err
	}
	env := []string{"PATH=" + hostPath, "HOME=/root", "LANG=C.UTF-8", "container=polder-lab", daemonVariable + "=" + string(daemon)}
	err = unix.Exec(hostBin+"/polder", []string{"polder", "lab", "init", spec.Name}, env)
	return fmt.Errorf("become PID 1: %w", err)
}

// enterMachine becomes QEMU, out of the Debian root and with the machine's directories that it needs where the machine has
// them. It has no network but the descriptors that it was given.
func enterMachine(spec hostSpec, root string, control io.Reader) error {
	if err := mountLayers(spec, root); err != nil {
		return err
	}
	for _, m := range []mount{
		{"proc", "proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "dev", "tmpfs", unix.MS_NOSUID, "mode=755,size=1m,nr_inodes=4096"},
		{"tmpfs", "tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		bind(spec.Lab, spec.Lab),
		bind(spec.Cache, spec.Cache),
	} {
		if err := m.mount(root); err != nil {
			return err
		}
	}
	if err := makeDevices(filepath.Join(root, "dev")); err != nil {
		return fmt.Errorf("make devices: %w", err)
	}
	if _, err := control.Read(make([]byte, 2)); err != nil {
		return fmt.Errorf("the command that started the host ended: %w", err)
	}
	if err := pivot(root); err != nil {
		return err
	}
	err := unix.Exec("/usr/bin/"+spec.QEMU[0], spec.QEMU, []string{"PATH=" + hostPath})
	return fmt.Errorf("become QEMU: %w", err)
}

// enterCgroup makes the host's cgroup the root of a namespace and its children's controllers those of the machine.
func enterCgroup(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	leaf := filepath.Join(dir, initLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	handOn(dir)
	return nil
}

// mount is one mount of a host, at a path below its root.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// mountRoot builds the host's file systems at root. Nothing of it is seen outside of the host's mount namespace.
func mountRoot(spec hostSpec, root string) error {
	if err := mountLayers(spec, root); err != nil {
		return err
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []mount{
		{"proc", "proc", "proc", safe, ""},
		{"sysfs", "sys", "sysfs", safe, ""},
		{"cgroup2", "sys/fs/cgroup", "cgroup2", safe, ""},
		{"tmpfs", "dev", "tmpfs", unix.MS_NOSUID, "mode=755,size=1m,nr_inodes=4096"},
		{"tmpfs", "run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	} {
		if err := m.mount(root); err != nil {
			return err
		}
	}
	if err := makeDevices(filepath.Join(root, "dev")); err != nil {
		return fmt.Errorf("make devices: %w", err)
	}
	mounts := []mount{
		{"devpts", "dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"},
		{"tmpfs", "dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "dev/mqueue", "mqueue", safe, ""},
		bind(filepath.Join(spec.Dir, "data"), "var/lib/polder"),
		bind(filepath.Join(spec.Dir, "log"), "var/log/polder"),
		bind(filepath.Join(spec.Dir, "run"), "run/polder"),
		bind(filepath.Join(spec.Lab, "shared"), "shared"),
		bind(filepath.Join(spec.Cache, "images"), "var/cache/polder/images"),
		bindReadOnly(filepath.Join(spec.Lab, "bin"), hostBin),
		bindReadOnly(filepath.Join(spec.Lab, "hosts"), "etc/hosts"),
	}
	if _, err := os.Stat("/lib/modules"); err == nil {
		mounts = append(mounts, bindReadOnly("/lib/modules", "usr/lib/modules"))
	}
	for _, m := range mounts {
		if err := m.mount(root); err != nil {
			return err
		}
	}
	return nil
}

// mountLayers mounts the root, in a mount namespace that nothing is seen of outside.
func mountLayers(spec hostSpec, root string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", spec.Lower, filepath.Join(spec.Dir, "upper"), filepath.Join(spec.Dir, "work"))
	if err := unix.Mount("overlay", root, "overlay", 0, layers); err != nil {
		return fmt.Errorf("mount the root (%s): %w", layers, err)
	}
	return nil
}

func bind(source, target string) mount {
	return mount{source, target, "", unix.MS_BIND, ""}
}

func bindReadOnly(source, target string) mount {
	return mount{source, target, "", unix.MS_BIND | unix.MS_RDONLY, ""}
}

func (m mount) mount(root string) error {
	target := filepath.Join(root, m.target)
	if err := makeMountPoint(m.source, target, m.flags&unix.MS_BIND != 0); err != nil {
		return fmt.Errorf("mount %s at /%s: %w", m.source, m.target, err)
	}
	err := unix.Mount(m.source, target, m.kind, m.flags&^unix.MS_RDONLY, m.data)
	if err == nil && m.flags&unix.MS_RDONLY != 0 {
		err = unix.Mount("", target, "", unix.MS_REMOUNT|m.flags, "")
	}
	if err != nil {
		return fmt.Errorf("mount %s at /%s: %w", m.source, m.target, err)
	}
	return nil
}

func makeMountPoint(source, target string, bind bool) error {
	if info, err := os.Stat(source); bind && err == nil && !info.IsDir() {
		f, err := os.OpenFile(target, os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	return os.MkdirAll(target, 0o755)
}

// writeFiles writes what makes the host itself, and the directories it is to have.
func writeFiles(spec hostSpec, root string) error {
	var resolv strings.Builder
	for _, a := range spec.Resolvers {
		fmt.Fprintf(&resolv, "nameserver %s\n", a)
	}
	for name, text := range map[string]string{
		"etc/hostname":    spec.Name + "\n",
		"etc/machine-id":  spec.MachineID + "\n",
		"etc/resolv.conf": resolv.String(),
	} {
		path := filepath.Join(root, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may be a link
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, d := range []string{"var/lib/polder/pools/default", "run/lock"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	link := filepath.Join(root, "usr/local/bin/polder")
	if err := os.Symlink(hostBin+"/polder", link); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// pivot makes root the root, and lets go of the machine's.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the machine's root: %w", err)
	}
	return os.Chdir("/")
}

// machineID is the same for a host of a lab whenever it starts, and another for every host.
func machineID(lab, host string) string {
	sum := sha256.Sum256([]byte("polder lab " + lab + " " + host))
	return hex.EncodeToString(sum[:16])
}
