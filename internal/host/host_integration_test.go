//go:build integration

package host

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"polder/api"
	"polder/internal/cluster"
	"polder/internal/hardware"
	"polder/internal/image"
	"polder/internal/model"
	"polder/internal/model/container"
	"polder/internal/network"
	"polder/internal/operation"
	"polder/internal/operation/operationtest"
	"polder/internal/storage"
	"polder/internal/storage/btrfs"
	"polder/internal/store"
)

// world is a host with real parts in directories of its own: etcd, a btrfs pool, a bridge with dnsmasq, crun. Its daemon
// can be "killed" and made again on the same data.
type world struct {
	data, run string
	store     *store.Store
	pool      storage.Pool
	fabric    *network.Fabric
	host      *Host
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newWorld(t testing.TB) *world {
	t.Helper()
	base, err := os.MkdirTemp("/var/lib/polder", "t") // short: sockets live below
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.Chmod(base, 0o711)) // dnsmasq's own user reads below it
	w := &world{data: base + "/d", run: base + "/r"}
	poolDir := filepath.Join("/var/lib/polder/pools/default", filepath.Base(base))
	t.Cleanup(func() {
		for _, dir := range []string{base, poolDir} {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		}
	})
	for _, dir := range []string{w.data, w.run, poolDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if w.store, err = store.Open(t.Context(), store.Options{Dir: w.data + "/store", Log: quiet}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })
	if w.pool, err = btrfs.Open(t.Context(), "default", poolDir); err != nil {
		t.Fatal(err)
	}
	w.fabric = network.NewFabric(w.run+"/network", quiet)
	return w
}

// boot makes the daemon's parts on the world's data, as after a start, up to Recover.
func (w *world) boot(t testing.TB) *operation.Engine {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	engine := operation.New(w.store, "h1", quiet)
	identity, err := cluster.Identify(ctx, cluster.Options{Name: "h1", Data: w.data, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	inventory, err := hardware.Take()
	if err != nil {
		t.Fatal(err)
	}
	alone, err := cluster.New(ctx, identity, w.store, cluster.Facts{ // never up
		CPUs: inventory.CPUs, Memory: inventory.Memory,
		Figures: func(context.Context) (cluster.Figures, error) { return cluster.Figures{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(alone.Close)
	w.host, err = New(Config{Name: "h1", Data: w.data, Run: w.run, Log: quiet}, Parts{
		Store: w.store, Engine: engine, Cluster: alone, Pool: w.pool, Fabric: w.fabric,
		Models: map[api.Model]model.Model{api.Container: container.New()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.host.networks.Get(ctx, defaultNetwork); err != nil {
		cfg := network.Config{
			Name: "default", Bridge: "ptest0", IPv4: netip.MustParsePrefix("10.250.7.1/24"), IPv6: netip.MustParsePrefix("fd7e:57::1/64"),
			Domain: "polder.internal", MTU: 1500,
		}
		if _, err := w.host.networks.Create(ctx, defaultNetwork, cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.fabric.Down(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	if err := w.host.networkUp(ctx); err != nil {
		t.Fatal(err)
	}
	return engine
}

// importBusybox puts an application image into the library: one static binary.
func (w *world) importBusybox(t testing.TB) {
	t.Helper()
	binary, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the package busybox-static is needed: %v", err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "run/", "tmp/", "sbin/"} {
		must(t, tw.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}))
	}
	must(t, tw.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(binary))}))
	_, err = tw.Write(binary)
	must(t, err)
	for _, name := range []string{"bin/sh", "bin/sleep", "sbin/init"} {
		must(t, tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox"}))
	}
	must(t, tw.WriteHeader(&tar.Header{Name: "etc/inittab", Mode: 0o644, Size: int64(len(inittab))}))
	_, err = tw.Write([]byte(inittab))
	must(t, err)
	must(t, tw.Close())
	op, err := w.host.ImportImage(t.Context(), api.ImageImportRequest{Alias: "busybox", Format: api.FormatTar}, &buf)
	must(t, err)
	op, err = w.host.WaitOperation(t.Context(), op.ID, nil)
	must(t, err)
	must(t, op.Error.Err())
}

const inittab = "::sysinit:/bin/true\n::respawn:/bin/sleep 100000\n"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// traces is all that a VE can leave on a host.
func (w *world) traces(t testing.TB) string {
	t.Helper()
	text, err := exec.Command("sh", "-c", `
		echo "processes: $(ps -eo args | grep -c '[s]leep 100000')"
		echo "mounts:"; cut -d' ' -f5 /proc/self/mountinfo | grep -F "$0" | sort
		echo "links:"; ls /sys/class/net | sort
		echo "cgroups:"; find /sys/fs/cgroup/polder -mindepth 1 -type d 2>/dev/null | sort
		echo "directories:"; ls "$0"/d/ve "$0"/d/staging`, filepath.Dir(w.data)).Output()
	must(t, err)
	var keys []string
	for _, table := range []*store.Table[claim]{w.host.addresses, w.host.idRanges} {
		recs, err := table.List(t.Context())
		must(t, err)
		for _, rec := range recs {
			keys = append(keys, rec.Key)
		}
	}
	volumes, err := w.pool.Volumes(t.Context())
	must(t, err)
	for _, vol := range volumes {
		keys = append(keys, vol.ID)
	}
	return string(text) + "claims and volumes: " + strings.Join(keys, " ")
}

// state gives a VE's state, or "" when there is none, and checks that the record, the model and the process table agree.
func (w *world) state(t testing.TB, name string) api.State {
	t.Helper()
	v, err := w.host.get(t.Context(), name)
	if api.KindOf(err) == api.NotFound {
		return ""
	}
	must(t, err)
	spec, err := w.host.spec(t.Context(), v)
	must(t, err)
	p, _, alive, err := w.host.models[v.Model].Adopt(t.Context(), spec)
	must(t, err)
	if wanted := v.State == api.Running || v.State == api.Paused; alive != wanted || alive && p.PID != v.PID {
		t.Errorf("ve %q is %s with pid %d in the store; it runs: %v, with pid %d", name, v.State, v.PID, alive, p.PID)
	}
	return v.State
}

func TestLaunchSurvivesEveryFault(t *testing.T) {
	operationtest.Exercise(t, operationtest.Harness{New: func(t testing.TB) operationtest.World {
		w := newWorld(t)
		engine := w.boot(t)
		w.importBusybox(t)
		clean := w.traces(t)
		t.Cleanup(func() { w.discard(t, "c1") })
		must(t, engine.Close(t.Context()))
		return operationtest.World{
			Boot: w.boot,
			Start: func(ctx context.Context, _ *operation.Engine) (api.Operation, error) {
				return w.host.Launch(ctx, api.LaunchRequest{Name: "c1", Image: "busybox", Restart: api.RestartNever})
			},
			Crash: func(testing.TB) { w.host.Close() },
			Check: func(t testing.TB, o operationtest.Outcome) {
				state := w.state(t, "c1")
				if o.Operation.State == api.OperationDone {
					if state != api.Running {
						t.Errorf("launched, but the VE is %q", state)
					}
					return
				}
				if after := w.traces(t); state != "" || after != clean {
					t.Errorf("%s, yet the VE is %q and this is left:\n%s\nbefore:\n%s", o.Operation.State, state, after, clean)
				}
			},
		}
	}})
}

// TestChangesSurviveEveryFault runs the operations on an existing VE.
func TestChangesSurviveEveryFault(t *testing.T) {
	for _, c := range []struct {
		kind   string
		before []string // operations that bring the VE where this one starts
		done   api.State
		undone api.State
		start  func(*Host, context.Context) (api.Operation, error)
	}{
		{"delete", nil, "", "", func(h *Host, ctx context.Context) (api.Operation, error) { return h.Delete(ctx, "c1") }},
		{"stop", nil, api.Stopped, "", func(h *Host, ctx context.Context) (api.Operation, error) {
			return h.Stop(ctx, "c1", api.StopRequest{Force: true})
		}},
		{"start", []string{"stop"}, api.Running, api.Stopped, func(h *Host, ctx context.Context) (api.Operation, error) { return h.Start(ctx, "c1") }},
		{"restart", nil, api.Running, "", func(h *Host, ctx context.Context) (api.Operation, error) {
			return h.Restart(ctx, "c1", api.StopRequest{Force: true})
		}},
		{"pause", nil, api.Paused, "", func(h *Host, ctx context.Context) (api.Operation, error) { return h.Pause(ctx, "c1") }},
	} {
		t.Run(c.kind, func(t *testing.T) {
			operationtest.Exercise(t, operationtest.Harness{New: func(t testing.TB) operationtest.World {
				w := newWorld(t)
				engine := w.boot(t)
				w.importBusybox(t)
				clean := w.traces(t)
				t.Cleanup(func() { w.discard(t, "c1") })
				w.wait(t)(w.host.Launch(t.Context(), api.LaunchRequest{Name: "c1", Image: "busybox", Restart: api.RestartNever}))
				if c.before != nil {
					w.wait(t)(w.host.Stop(t.Context(), "c1", api.StopRequest{Force: true}))
				}
				w.host.Close()
				must(t, engine.Close(t.Context()))
				return operationtest.World{
					Boot: w.boot,
					Start: func(ctx context.Context, _ *operation.Engine) (api.Operation, error) {
						return c.start(w.host, ctx)
					},
					Crash: func(testing.TB) { w.host.Close() },
					Check: func(t testing.TB, o operationtest.Outcome) {
						state := w.state(t, "c1") // fails when the record does not say what is
						if o.Operation.State == api.OperationDone && state != c.done || o.Operation.State != api.OperationDone && c.undone != "" && state != c.undone {
							t.Errorf("%s, and the VE is %q", o.Operation.State, state)
						}
						if after := w.traces(t); state == "" && after != clean {
							t.Errorf("deleted, yet this is left:\n%s\nbefore:\n%s", after, clean)
						}
					},
				}
			}})
		})
	}
}

// wait gives a function that waits for an operation and fails the test unless it succeeds.
func (w *world) wait(t testing.TB) func(api.Operation, error) {
	return func(op api.Operation, err error) {
		t.Helper()
		must(t, err)
		op, err = w.host.WaitOperation(t.Context(), op.ID, nil)
		must(t, err)
		must(t, op.Error.Err())
	}
}

// discard takes VEs apart without any operation, at the end of a test.
func (w *world) discard(t testing.TB, names ...string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	for _, name := range names {
		if v, err := w.host.get(ctx, name); err == nil {
			must(t, w.host.deleteSnapshots(ctx, v))
			must(t, w.host.tearDown(ctx, v))
			must(t, w.pool.Delete(ctx, v.ID))
		}
	}
	images, err := w.host.Images(ctx)
	must(t, err)
	for _, img := range images {
		must(t, w.pool.DeleteBase(ctx, image.TreeBase(img), storage.Tree))
	}
	w.host.Close()
}

// An address or id range that somebody else took in the meantime is chosen anew, and none is ever given twice.
func TestClaimsAreUnique(t *testing.T) {
	w := newWorld(t)
	engine := w.boot(t)
	t.Cleanup(func() { must(t, engine.Close(context.Background())) })
	errs := make(chan error)
	const n = 12
	for i := range n {
		go func() {
			r := &operation.Run[launch]{State: launch{VE: VE{ID: uuid.NewString(), Name: "c" + string(rune('a'+i))}}}
			errs <- w.host.reserve(t.Context(), r)
		}()
	}
	for range n {
		must(t, <-errs)
	}
	for what, list := range map[string]*store.Table[claim]{"addresses": w.host.addresses, "id ranges": w.host.idRanges} {
		recs, err := list.List(t.Context())
		must(t, err)
		want := n
		if what == "addresses" {
			want = 2 * (n + 1) // of both kinds, and the host's own port has them too
		}
		if len(recs) != want {
			t.Errorf("%d %s are claimed, want %d", len(recs), what, want)
		}
	}
}
