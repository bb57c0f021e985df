package lab

import (
	"context"
	"io"
	"syscall"
	"time"

	"polder/api"
)

// Backend is what the hosts of a lab are made of.
type Backend string

// The backends.
const (
	Namespaces Backend = "namespace" // processes in namespaces, on the machine's kernel
	Machines   Backend = "vm"        // QEMU machines with a kernel of their own
)

// ParseBackend reads the name of a backend.
func ParseBackend(text string) (Backend, error) {
	switch b := Backend(text); b {
	case Namespaces, Machines:
		return b, nil
	}
	return "", api.Errorf(api.Invalid, "lab backend %q: want namespace or vm", text)
}

// backend makes the hosts of a lab. Every host is in the lab's cgroup of its name, has the port of its name on the
// switch and the socket run/polder.sock in its directory: what only takes these is not the backend's. All but exec is
// called with the lab locked.
type backend interface {
	// prepare gives the hosts' base; it builds it when the cache has none.
	prepare(ctx context.Context, report Report) (base, error)
	// makeHost makes the files of a host; what is there is kept.
	makeHost(ctx context.Context, n int, poolSize api.Bytes) error
	// spawn starts a host that is not running, in its cgroup, connected and up to the point where its daemon starts.
	// What an earlier life left is gone.
	spawn(ctx context.Context, env hostEnv, n int) error
	// connect mends the network of a host that runs.
	connect(env hostEnv, n, pid int) error
	// restart ends the daemon of a host, which is started again. It gives when the old one made its socket, or zero when
	// that one is gone already.
	restart(ctx context.Context, n, pid int) (old time.Time, err error)
	// exec runs a command in a running host; see Lab.Exec.
	exec(ctx context.Context, name string, pid int, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error)
	// setCarrier lets the host see whether its cable is plugged in, when the switch's port does not do that.
	setCarrier(ctx context.Context, n int, up bool) error
}

// base is what all hosts of a lab start from.
type base struct {
	root  string // a Debian root file system, that nobody changes
	image string // of VM hosts: what makeImage made
}

// backend is that of a lab with this record.
func (l *Lab) backend(r *record) backend {
	if r.backend() == Machines {
		return machines{l}
	}
	return namespaces{l}
}

func (r *record) backend() Backend {
	if r == nil || r.Backend == "" {
		return Namespaces
	}
	return r.Backend
}

// namespaces makes hosts of namespaces; see enter for what they are.
type namespaces struct{ l *Lab }

func (b namespaces) prepare(ctx context.Context, report Report) (base, error) {
	root, err := b.l.makeRoot(ctx, report)
	return base{root: root}, err
}

func (b namespaces) makeHost(_ context.Context, n int, poolSize api.Bytes) error {
	if err := b.l.makeDirectories(n, "upper", "work", "root", "data", "run", "log"); err != nil {
		return err
	}
	if err := makePoolFile(b.l.path(nameOf(n), poolFile), poolSize); err != nil {
		return api.Errorf(api.Internal, "make lab host %s: %w", nameOf(n), err)
	}
	return nil
}

func (b namespaces) connect(env hostEnv, n, pid int) error {
	return b.l.connect(env.record, n, pid, env.uplink)
}

func (b namespaces) restart(_ context.Context, n, pid int) (time.Time, error) {
	old := b.l.socketTime(n)
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return old, api.Errorf(api.Internal, "restart the daemon of lab host %s: %w", nameOf(n), err)
	}
	return old, nil
}

// setCarrier has nothing to do: the host's end of a veth shows what the switch's does.
func (namespaces) setCarrier(context.Context, int, bool) error { return nil }
