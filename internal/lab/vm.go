package lab

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"polder/api"
	"polder/internal/command"
	"polder/internal/hardware"
)

// machines makes hosts of QEMU machines: copies of one that was saved when it had booted, with its memory shared as long
// as they don't write to it. QEMU runs out of the Debian root of all labs, in namespaces of its own: which QEMU the
// machine itself has does not matter. What a host writes is on its disks; it starts anew from the saved state, with them.
//
//	cgroup hN/init     QEMU, and the process that forwards run/polder.sock to the host's daemon
//	switch             port hN: the host's eth0; port ctl-hN, not on the bridge: the lab's own way to the host, see Agent
type machines struct{ l *Lab }

const (
	identityFile = "identity.json" // what the host is told, in its directory
	sizeFile     = "pool.size"     // in bytes: the disk that the pool is on is larger
	upFile       = "run/up"        // exists when the host knows who it is
)

// identity is what makes a copy of the saved machine a host; see Become.
type identity struct {
	Name     string    `json:"name"`
	PoolSize api.Bytes `json:"pool_size"`
	Seed     []byte    `json:"seed"` // for its random numbers: the saved state has those of all
	Time     time.Time `json:"time"`
	Host     hostSpec  `json:"host"`
	Network  []string  `json:"network"` // addresses of its eth0
	Gateway  string    `json:"gateway"` // "": none
	MAC      string    `json:"mac"`
	Control  string    `json:"control"` // address of its end of the control link
}

func (b machines) prepare(ctx context.Context, report Report) (base, error) {
	root, err := b.l.makeRoot(ctx, report)
	if err != nil {
		return base{}, err
	}
	image, err := b.l.makeImage(ctx, root, report)
	return base{root: root, image: image}, err
}

func (b machines) makeHost(ctx context.Context, n int, poolSize api.Bytes) error {
	l, name := b.l, nameOf(n)
	if err := l.makeDirectories(n, "upper", "work", "root", "run", "log"); err != nil {
		return err
	}
	if _, err := os.Stat(l.path(name, diskFile)); err != nil {
		if err := b.makeDisk(ctx, l.path(name, diskFile)); err != nil {
			return fmt.Errorf("make lab host %s: %w", name, err)
		}
	}
	_, err := os.Stat(l.path(name, sizeFile))
	if err != nil {
		err = os.WriteFile(l.path(name, sizeFile), []byte(strconv.FormatInt(int64(poolSize), 10)), 0o644)
	}
	if err == nil {
		err = makePoolFile(l.path(name, poolFile), poolDisk)
	}
	if err != nil {
		return api.Errorf(api.Internal, "make lab host %s: %w", name, err)
	}
	return nil
}

// makeDisk makes the disk whole or not at all.
func (b machines) makeDisk(ctx context.Context, path string) error {
	tmp := path + unfinished
	_ = os.Remove(tmp)
	if err := makePoolFile(tmp, diskSize); err != nil {
		return err
	}
	mkfs, err := b.l.tool(command.Command{Name: "mke2fs", Args: []string{
		"-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=32", "-E", "nodiscard,lazy_itable_init=1", tmp,
	}})
	if err == nil {
		_, err = mkfs.Run(ctx)
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func (b machines) machine(env hostEnv, n int) machine {
	kvm, _ := hardware.KVM()
	return machine{
		image: env.base.image, kvm: kvm, dir: b.l.path(nameOf(n)), shared: b.l.dir, images: filepath.Join(b.l.cache, "images"),
		uuid:    machineUUID(b.l.id, nameOf(n)),
		network: [2]string{"fd=5", "fd=6"}, // see clone
	}
}

// machineUUID has the form that QEMU wants, of the same digits as the machine id.
func machineUUID(lab, host string) string {
	id := machineID(lab, host)
	return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
}

func (b machines) spawn(ctx context.Context, env hostEnv, n int) error {
	l, name := b.l, nameOf(n)
	m := b.machine(env, n)
	if err := m.checkPaths(); err != nil {
		return err
	}
	cgroup, err := l.clear(ctx, n)
	if err != nil {
		return err
	}
	host := hostSpec{Name: name, Dir: l.path(name), Lab: l.dir, Lower: env.base.root, Cache: l.cache, Cgroup: cgroup}
	if err := b.writeSpec(env, n, host); err != nil {
		return err
	}
	taps, err := l.makeTaps(env.record, n)
	if err != nil {
		return err
	}
	defer func() {
		for _, t := range taps {
			t.Close()
		}
	}()
	host.QEMU = m.args()
	first, err := l.clone(host, taps...)
	if err != nil {
		return err
	}
	defer first.close()
	if err := first.proceed(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := wake(ctx, m, name); err != nil {
		return err
	}
	if err := l.startForward(n, cgroup); err != nil {
		return err
	}
	if err := b.greet(ctx, n); err != nil {
		console, _ := os.ReadFile(l.path(name, "log", "console.log"))
		return api.Errorf(api.Unavailable, "the machine of lab host %s does not come up: %w; the end of its console: %s", name, err, console[max(0, len(console)-1000):])
	}
	return os.WriteFile(l.path(name, upFile), nil, 0o644)
}

func (b machines) writeSpec(env hostEnv, n int, host hostSpec) error {
	l, name := b.l, nameOf(n)
	text, err := os.ReadFile(l.path(name, sizeFile))
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", l.path(name, sizeFile), err)
	}
	v4, v6 := env.record.address(n)
	host.MachineID, host.Daemon = machineID(l.id, name), env.daemon
	g := identity{
		Name: name, PoolSize: api.Bytes(size), Seed: make([]byte, 64), Time: time.Now(), Host: host,
		Network: []string{v4.String(), v6.String()}, MAC: l.mac(n).String(), Control: controlAddress(n, 2).String(),
	}
	if env.uplink {
		gateway, _ := env.record.address(0)
		g.Gateway = gateway.Addr().String()
		g.Host.Resolvers = env.outside.resolvers
	}
	_, _ = rand.Read(g.Seed) // never fails
	data, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return os.WriteFile(l.path(name, identityFile), data, 0o600)
}

// wake lets the machine go on from the saved state, and tells it its name.
func wake(ctx context.Context, m machine, name string) error {
	c, err := dialQMP(ctx, m)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Execute(ctx, "migrate-set-capabilities", ignoreShared, nil); err != nil {
		return err
	}
	if err := c.Execute(ctx, "migrate-incoming", map[string]any{"uri": "file:" + filepath.Join(m.image, imageState)}, nil); err != nil {
		return err
	}
	for {
		var run struct {
			Status string `json:"status"`
		}
		if err := c.Execute(ctx, "query-status", nil, &run); err != nil {
			return err
		}
		if run.Status == "paused" { // as it was saved
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	word, err := dialSocket(ctx, m.wordSocket())
	if err != nil {
		return err
	}
	defer word.Close()
	if err := c.Execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	_, err = fmt.Fprintln(word, name)
	return err
}

// greet waits until the host's agent answers, and tells it the time.
func (b machines) greet(ctx context.Context, n int) error {
	for {
		try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		_, err := b.l.ask(try, n, request{Now: time.Now().UnixNano()})
		cancel()
		if err == nil {
			return nil
		}
		if b.l.initPID(nameOf(n)) == 0 && !b.running(n) {
			return errors.Join(errors.New("qemu has ended"), err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// running says whether there is anything in the host's cgroup.
func (b machines) running(n int) bool {
	dir, err := b.l.cgroup(nameOf(n), initLeaf)
	if err != nil {
		return false
	}
	data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	return len(data) > 0
}

// isUpMachine says whether argv is that of the QEMU of a host that got to know who it is: what was cut off before is no
// host that runs.
func (l *Lab) isUpMachine(name, argv string) bool {
	if !strings.HasPrefix(argv, "qemu-system-") {
		return false
	}
	_, err := os.Stat(l.path(name, upFile))
	return err == nil
}

// connect has nothing to do: the cable of a machine stays where it was plugged in.
func (machines) connect(hostEnv, int, int) error { return nil }

func (b machines) restart(ctx context.Context, n, _ int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := b.l.ask(ctx, n, request{Restart: true}); err != nil {
		return time.Time{}, api.Errorf(api.Unavailable, "restart the daemon of lab host %s: %w", nameOf(n), err)
	}
	return time.Time{}, nil
}

func (b machines) setCarrier(ctx context.Context, n int, up bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := dialQMP(ctx, machine{dir: b.l.path(nameOf(n))})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Execute(ctx, "set_link", map[string]any{"name": "cable-nic", "up": up}, nil); err != nil {
		return api.Errorf(api.Internal, "set the link of lab host %s: %w", nameOf(n), err)
	}
	return nil
}
