package lab

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"polder/api"
	"polder/internal/command"
	"polder/internal/hardware"
	"polder/internal/qmp"
)

// imageFormat goes up when the way an image is made changes, and nothing else says so.
const imageFormat = 1

const imagePackage = "linux-image-amd64"

//go:embed boot/build.sh
var buildScript string

//go:embed boot/first.sh
var firstScript string

//go:embed boot/second.sh
var secondScript string

// imageTime bounds the boot of the machine that is saved: without KVM it is emulated, on a machine that may be busy.
const imageTime = 5 * time.Minute

// imageKey names the image that is made of a root: a saved machine goes on only in one that is the same.
func imageKey(root string, kvm bool) string {
	cpu := ""
	if kvm {
		cpu = cpuModel()
	}
	saved := machine{saving: true, kvm: kvm}.args()
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %s %s %q %s %s %s", imageFormat, filepath.Base(root), imagePackage, cpu, saved, buildScript, firstScript, secondScript))
	return "vm-" + hex.EncodeToString(sum[:6])
}

func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// makeImage gives the directory of what VM hosts start from: a kernel, a root and the state of a machine that has booted
// them. It builds it when the cache has none.
func (l *Lab) makeImage(ctx context.Context, root string, report Report) (string, error) {
	kvm, why := hardware.KVM()
	dir := filepath.Join(l.cache, "root", imageKey(root, kvm))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unlock, err := lockRoots(ctx, l.cache, report)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	start := time.Now()
	report("image: making a machine with Debian 13's kernel in %s, once", dir)
	if !kvm {
		report("image: it is emulated, as %s", why)
	}
	tmp := dir + unfinished
	err = os.RemoveAll(tmp)
	if err == nil {
		err = l.buildImage(ctx, tmp, root, report)
	}
	if err == nil {
		err = l.saveMachine(ctx, tmp, root, kvm, report)
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		_ = os.RemoveAll(tmp)
		return "", fmt.Errorf("make the image of VM hosts: %w", err)
	}
	report("image: made in %s", seconds(start))
	return dir, nil
}

// buildImage makes the kernel, the initrd and the root's disk.
func (l *Lab) buildImage(ctx context.Context, dir, root string, report Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return api.Errorf(api.Internal, "%w", err)
	}
	mirror := debianSource(machineSources())
	for _, c := range []command.Command{
		{Name: "mmdebstrap", Args: []string{
			"--mode=root", "--variant=extract", "--include=" + imagePackage, rootSuite, filepath.Join(dir, "kernel"),
			"deb " + mirror + " " + rootSuite + " main", "deb " + debianMirrors[1] + " " + rootSuite + "-security main",
		}, Stderr: &infoLines{report: report}},
		{Name: "sh", Args: []string{"-c", buildScript, "sh", root, dir, firstScript, secondScript}},
	} {
		if err := l.runBuild(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// runBuild runs a command that leaves nothing behind, also when this process is killed: see buildRoot.
func (l *Lab) runBuild(ctx context.Context, c command.Command) error {
	if _, err := command.Find(c.Name); err != nil {
		return err
	}
	c.Args = append([]string{
		"--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", c.Name,
	}, c.Args...)
	c.Name = "setpriv"
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := l.tool(c)
	if err == nil {
		_, err = c.Run(ctx)
	}
	return err
}

// saveMachine boots the image up to the point at which a host would be told its name, and saves the machine there.
func (l *Lab) saveMachine(ctx context.Context, dir, root string, kvm bool, report Report) (err error) {
	ctx, cancel := context.WithTimeout(ctx, imageTime)
	defer cancel()
	m := machine{
		image: dir, kvm: kvm, saving: true, dir: dir, shared: filepath.Join(dir, "run"), images: filepath.Join(dir, "run"),
		uuid:    machineUUID("saved", "image"),
		network: [2]string{"ifname=tap0,script=no,downscript=no", "ifname=tap1,script=no,downscript=no"},
	}
	if err := m.checkPaths(); err != nil {
		return err
	}
	for _, d := range []string{"run", "log", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return api.Errorf(api.Internal, "%w", err)
		}
	}
	for file, size := range map[string]api.Bytes{diskFile: diskSize, poolFile: poolDisk} {
		if err := makePoolFile(filepath.Join(dir, file), size); err != nil {
			return api.Errorf(api.Internal, "%w", err)
		}
	}
	cgroup, err := l.cgroup("image")
	if err == nil {
		err = killCgroup(ctx, cgroup)
	}
	if err == nil {
		err = os.Mkdir(cgroup, 0o755)
	}
	if err != nil {
		return err
	}
	defer func() {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, killCgroup(cleanup, cgroup))
	}()
	start := time.Now()
	first, err := l.clone(hostSpec{Name: "image", Dir: dir, Lab: dir, Lower: root, Cache: l.cache, Cgroup: cgroup, QEMU: m.args()})
	if err != nil {
		return err
	}
	defer first.close()
	if err := first.proceed(); err != nil {
		return err
	}
	if err := awaitWord(ctx, m); err != nil {
		console, _ := os.ReadFile(filepath.Join(dir, "log", "console.log"))
		return api.Errorf(api.Unavailable, "wait for the machine to boot: %w; the end of its console: %s", err, console[max(0, len(console)-1000):])
	}
	report("image: booted in %s", seconds(start))
	if err := save(ctx, m); err != nil {
		return err
	}
	for _, d := range []string{"run", "upper", "work", "root", diskFile, poolFile} {
		if err := os.RemoveAll(filepath.Join(dir, d)); err != nil {
			return api.Errorf(api.Internal, "%w", err)
		}
	}
	return nil
}

// awaitWord waits until the machine has booted and asks for its name.
func awaitWord(ctx context.Context, m machine) error {
	conn, err := dialSocket(ctx, m.wordSocket())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	var text []byte
	buf := make([]byte, 256)
	for !strings.Contains(string(text), "ready") {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		text = append(text, buf[:n]...)
	}
	return nil
}

// dialSocket connects to a socket that QEMU is about to make.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ignoreShared keeps the memory out of the state: the file that it is mapped from has it.
var ignoreShared = map[string]any{"capabilities": []map[string]any{{"capability": "x-ignore-shared", "state": true}}}

// save stops the machine and writes what is not in its memory. The machine ends.
func save(ctx context.Context, m machine) error {
	c, err := dialQMP(ctx, m)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, s := range []struct {
		command string
		args    any
	}{
		{"stop", nil},
		{"migrate-set-capabilities", ignoreShared},
		{"migrate", map[string]any{"uri": "file:" + filepath.Join(m.image, imageState)}},
	} {
		if err := c.Execute(ctx, s.command, s.args, nil); err != nil {
			return api.Errorf(api.Internal, "save the machine: %w", err)
		}
	}
	for {
		var status struct {
			Status string `json:"status"`
			Reason string `json:"error-desc"`
		}
		if err := c.Execute(ctx, "query-migrate", nil, &status); err != nil {
			return api.Errorf(api.Internal, "save the machine: %w", err)
		}
		switch status.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return api.Errorf(api.Internal, "save the machine: %s", status.Reason)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func dialQMP(ctx context.Context, m machine) (*qmp.Client, error) {
	conn, err := dialSocket(ctx, m.qmpSocket())
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "connect to QEMU: %w", err)
	}
	return qmp.New(ctx, conn.(*net.UnixConn))
}
