package cli

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"polder/api"
	"polder/internal/server"
	"polder/internal/server/servertest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"polder": func() { os.Exit(Main("v1.2.3")) },
	})
}

// TestScript runs the real command line as a process of its own against the real server on a socket.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       os.Getenv("UPDATE") != "",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			f := newFixture(env.T().(testing.TB))
			env.Values["fixture"] = f
			env.Setenv("POLDER_HOST", "unix://"+f.socket)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"add":     addVE,
			"host":    addHost,
			"reached": reachedStep,
			"release": func(ts *testscript.TestScript, _ bool, _ []string) { fixtureOf(ts).backend.Release() },
			"bounce":  func(ts *testscript.TestScript, _ bool, _ []string) { fixtureOf(ts).bounce() },
		},
	})
}

// fixture is a server on a socket that can be stopped and started again.
type fixture struct {
	t       testing.TB
	backend *servertest.Backend
	socket  string
	stop    func()
}

func newFixture(t testing.TB) *fixture {
	dir, err := os.MkdirTemp("", "polder") // not the script's own directory: a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{t: t, backend: servertest.New(), socket: filepath.Join(dir, "s")}
	f.start()
	t.Cleanup(func() { f.stop() })
	return f
}

func (f *fixture) start() {
	l, err := server.Listen(f.socket, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func(l net.Listener) { served <- server.New(f.backend, server.Options{Host: "h1"}).Serve(ctx, l) }(l)
	f.stop = func() {
		cancel()
		if err := <-served; err != nil {
			f.t.Errorf("serve: %v", err)
		}
	}
}

func (f *fixture) bounce() {
	f.stop()
	f.start()
}

func fixtureOf(ts *testscript.TestScript) *fixture { return ts.Value("fixture").(*fixture) }

// addVE puts a VE there: add NAME MODEL STATE [LABEL=VALUE…].
func addVE(ts *testscript.TestScript, _ bool, args []string) {
	labels := map[string]string{"role": args[0]}
	for _, pair := range args[3:] {
		key, value, _ := strings.Cut(pair, "=")
		labels[key] = value
	}
	fixtureOf(ts).backend.Add(api.VE{
		Name: args[0], Model: api.Model(args[1]), State: api.State(args[2]), Host: "h1", Image: "debian/13", CPUs: 2,
		MemoryBytes: 1536 * api.MiB, DiskBytes: 10 * api.GiB, Pool: "default", Restart: api.RestartNever, Labels: labels,
		Addresses: []api.Address{{Network: "default", MAC: "52:54:00:00:00:02", Address: "10.87.0.6/24"}},
	})
}

// addHost puts a host there: host NAME FREE-MEMORY.
func addHost(ts *testscript.TestScript, _ bool, args []string) {
	free, err := api.ParseBytes(args[1])
	ts.Check(err)
	fixtureOf(ts).backend.AddHost(api.Host{Name: args[0], State: api.HostReady, Role: api.RoleMember, FreeMemoryBytes: free})
}

// reachedStep waits until an operation is in a step: reached ID STEP.
func reachedStep(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		there, stop := context.WithCancel(ctx)
		op, err := fixtureOf(ts).backend.WaitOperation(there, args[0], func(op api.Operation) {
			if op.Step == args[1] {
				stop()
			}
		})
		stop()
		switch {
		case op.Step == args[1]:
			return
		case api.KindOf(err) == api.NotFound: // not started yet
			time.Sleep(time.Millisecond)
		case err == nil:
			ts.Fatalf("operation %s ended before it reached %s", args[0], args[1])
		}
	}
	ts.Fatalf("operation %s never reached %s", args[0], args[1])
}
