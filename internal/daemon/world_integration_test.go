//go:build integration

package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"polder/api"
	"polder/client"
	"polder/internal/lab"
	"polder/internal/network"
	"polder/internal/operation"
)

// TestMain makes the test binary stand in for the program that lab hosts run: it is their daemon too, one that stops
// where it is told to.
func TestMain(m *testing.M) {
	args := os.Args[1:]
	switch {
	case len(args) >= 2 && args[0] == "lab" && args[1] == "enter":
		exit(lab.Enter())
	case len(args) >= 2 && args[0] == "lab" && args[1] == "init":
		exit(lab.Init())
	case len(args) == 1 && args[0] == network.ProberArg:
		exit(network.Prober(os.Stdin, os.Stdout))
	case len(args) >= 1 && args[0] == "serve":
		exit(serveWithStops(args[1:]))
	default:
		os.Exit(m.Run())
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveWithStops(args []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	o := Options{
		Name: name, Run: "/run/polder", Listen: "/run/polder/polder.sock", Version: "test",
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.StringVar(&o.Data, "data", "", "")
	flags.StringVar(&o.Address, "address", "", "")
	flags.StringVar(&o.Join, "join", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return run(ctx, o, func(ctx context.Context, o Options) (*parts, error) {
		p, err := assemble(ctx, o)
		if err == nil {
			p.engine.InjectFaults(stops{dir: "/shared", parts: p}.at)
		}
		return p, err
	})
}

// stop is a point at which a move waits for the test's word.
type stop struct {
	Step  string
	Phase operation.Phase
	Fail  bool // it does not wait, and fails
}

// stops is the daemon's end of what the test says by files, which outlive the daemon and its host: NAME.stops are the host's
// stops to come, in order; NAME.here says that it waits, and who leads the store; NAME.word is the word to go on, "fail" or "go".
type stops struct {
	dir   string
	parts *parts
}

func (s stops) at(p operation.Point) error {
	if p.Kind != "move" {
		return nil
	}
	file := filepath.Join(s.dir, s.parts.cluster.Name())
	var due []stop
	text, err := os.ReadFile(file + ".stops")
	if err != nil || json.Unmarshal(text, &due) != nil || len(due) == 0 {
		return nil //nolint:nilerr // none
	}
	if due[0].Step != p.Step || due[0].Phase != p.Phase {
		return nil
	}
	text, _ = json.Marshal(due[1:])
	if err := writeWhole(file+".stops", text); err != nil {
		return err
	}
	if due[0].Fail {
		return api.Errorf(api.Unavailable, "injected: a failure %s of step %q", p.Phase, p.Step)
	}
	leader := ""
	members, err := s.parts.store.Members(context.Background())
	for _, m := range members {
		if m.Leader {
			leader = m.Name
		}
	}
	if err := errors.Join(err, writeWhole(file+".here", []byte(leader))); err != nil {
		return err
	}
	for {
		word, err := os.ReadFile(file + ".word")
		if err == nil {
			os.Remove(file + ".word")
			if string(word) == "fail" {
				return api.Errorf(api.Unavailable, "injected: a failure %s of step %q", p.Phase, p.Step)
			}
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func writeWhole(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// world is a cluster of three whole hosts: their own daemons, stores, networks, pools.
type world struct {
	*testing.T
	lab     *lab.Lab
	hosts   []string
	clients map[string]*client.Client
	without map[string]string // what a host shows when the VE is elsewhere
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "l")
	l, err := lab.OpenOn("/", dir, dir+".cache")
	must(t, err)
	w := &world{T: t, lab: l, clients: map[string]*client.Client{}, without: map[string]string{}}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	hosts, err := l.Up(t.Context(), lab.UpOptions{Hosts: 3, PoolSize: api.GiB})
	must(t, err)
	for _, h := range hosts {
		c, err := client.New(h.URL())
		must(t, err)
		t.Cleanup(c.Close)
		w.hosts, w.clients[h.Name] = append(w.hosts, h.Name), c
	}
	w.eventually("three hosts keep the store", func() error {
		list, err := w.clients["h1"].Hosts(t.Context())
		for _, h := range list {
			if h.Role != api.RoleMember {
				err = errors.Join(err, fmt.Errorf("host %s is a %s", h.Name, h.Role))
			}
		}
		return err
	})
	t.Logf("the cluster took %v", time.Since(began))
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually tries until there is no error, for a minute at most.
func (w *world) eventually(what string, try func() error) {
	w.Helper()
	err := try()
	for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); err = try() {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		w.Fatalf("within a minute it does not come true that %s: %v", what, err)
	}
}

// ve's first process counts for as long as it lives, and has a name of its own.
const ve = `#!/bin/sh
trap 'exit 0' PWR TERM
read me < /proc/sys/kernel/random/uuid
n=0
while :; do
	n=$((n+1)); echo $me $n > /run/count
	sleep 0.05 & wait $!
done
`

// importImage makes the image "counter".
func (w *world) importImage() {
	w.Helper()
	binary, err := os.ReadFile("/bin/busybox")
	if err != nil {
		w.Fatalf("the package busybox-static is needed: %v", err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "run/", "tmp/", "sbin/"} {
		must(w, tw.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}))
	}
	for name, content := range map[string][]byte{"bin/busybox": binary, "sbin/init": []byte(ve)} {
		must(w, tw.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}))
		_, err = tw.Write(content)
		must(w, err)
	}
	for _, name := range []string{"bin/sh", "bin/sleep"} {
		must(w, tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox"}))
	}
	must(w, tw.Close())
	w.done(w.clients["h1"].ImportImage(w.Context(), api.ImageImportRequest{Alias: "counter", Format: api.FormatTar}, &buf))
}

// done waits for an operation, which must succeed.
func (w *world) done(op api.Operation, err error) {
	w.Helper()
	must(w, err)
	if op = w.end(op.ID); op.Error != nil {
		w.Fatalf("%s of %s: %+v", op.Kind, op.Target, op.Error)
	}
}

// end waits for an operation's end, and asks whichever host answers.
func (w *world) end(id string) (op api.Operation) {
	w.Helper()
	w.eventually("operation "+id+" ends", func() error {
		var err error
		if op, err = w.operation(id); err == nil && !op.State.Final() {
			err = fmt.Errorf("%s is %s, step %s at host %s: %+v", op.Kind, op.State, op.Step, op.Host, op.Error)
		}
		return err
	})
	return op
}

func (w *world) operation(id string) (op api.Operation, err error) {
	err = w.ask(func(ctx context.Context, c *client.Client) (err error) {
		op, err = c.Operation(ctx, id)
		return err
	})
	return op, err
}

func (w *world) record() (v api.VE, err error) {
	err = w.ask(func(ctx context.Context, c *client.Client) (err error) {
		v, err = c.VE(ctx, "c1")
		return err
	})
	return v, err
}

// ask asks the hosts that run one after the other until one answers.
func (w *world) ask(question func(context.Context, *client.Client) error) (err error) {
	for _, h := range w.running() {
		ctx, cancel := context.WithTimeout(w.Context(), 3*time.Second)
		err = question(ctx, w.clients[h])
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}

func (w *world) running() (names []string) {
	list, err := w.lab.List()
	must(w, err)
	for _, h := range list {
		if h.State == lab.HostRunning {
			names = append(names, h.Name)
		}
	}
	return names
}

// in runs a shell script in a host.
func (w *world) in(host, script string) string {
	w.Helper()
	var out, errs bytes.Buffer
	code, err := w.lab.Exec(w.Context(), host, []string{"sh", "-s"}, strings.NewReader(script), &out, &errs)
	if err != nil || code != 0 {
		w.Fatalf("in %s: %s: %v, exit %d: %s%s", host, script, err, code, out.String(), errs.String())
	}
	return out.String()
}

// counter is one run of the VE's first process.
type counter struct {
	host, me string
	n        int
	still    bool // it is there, and stands still
}

// counters are the VE's runs on all hosts that are up.
func (w *world) counters() (list []counter) {
	w.Helper()
	for _, host := range w.running() {
		for line := range strings.Lines(w.in(host, `
			for p in $(pgrep -f '/bin/sh /sbin/init'); do
				state=$(sed 's/.*) \(.\).*/\1/' /proc/$p/stat) || continue
				[ "$state" != Z ] || continue
				[ "$(sed -n 's/^NSpid:.*\t//p' /proc/$p/status)" = 1 ] || continue # a child that is not sleep yet
				frozen=$(awk '$1 == "frozen" {print $2}' /sys/fs/cgroup/$(sed -n 's/^0:://p' /proc/$p/cgroup)/cgroup.events)
				echo "$state ${frozen:-?} $(cat /proc/$p/root/run/count)"
			done 2>/dev/null; true`)) {
			c, state, frozen := counter{host: host}, "", ""
			fmt.Sscan(line, &state, &frozen, &c.me, &c.n)
			c.still = strings.ContainsAny(state, "Tt") || frozen == "1"
			list = append(list, c)
		}
	}
	return list
}

// traces is all that a VE can leave on a host.
func (w *world) traces(host string) string {
	w.Helper()
	return w.in(host, `
		echo "processes: $(ps -eo stat,args | awk '$1 !~ /Z/' | grep -cE '[/]sbin/init|[c]riu|[c]run|polder[-]userns')"
		echo "links:" $(ls /sys/class/net | grep -v '^polder0' | sort)
		echo "mounts:" $(cut -d' ' -f5 /proc/self/mountinfo | sort)
		echo "cgroups:" $(cd /sys/fs/cgroup && find . -mindepth 1 -type d | grep -v '^./init\|^./polder$' | sort)
		cd /var/lib/polder
		echo "files:" $(find ve staging pools -mindepth 1 -maxdepth 3 -not -path '*/bases/*/*' | sort)`)
}

// shared is what the test and the hosts' daemons say to each other; see stops.
func (w *world) shared(host, what string) string {
	return filepath.Join(w.lab.Shared(), host+"."+what)
}

func (w *world) setStops(host string, list ...stop) {
	w.Helper()
	text, err := json.Marshal(list)
	must(w, errors.Join(err, writeWhole(w.shared(host, "stops"), text)))
}

func (w *world) clearStops() {
	for _, h := range w.hosts {
		for _, what := range []string{"stops", "here", "word"} {
			if err := os.Remove(w.shared(h, what)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				w.Error(err)
			}
		}
	}
}

// awaitStop waits until a move stands at the host's stop; it gives the store's leader.
func (w *world) awaitStop(host, op string) (leader string) {
	w.Helper()
	w.eventually("the move stops on "+host, func() error {
		text, err := os.ReadFile(w.shared(host, "here"))
		leader = string(text)
		if err != nil {
			if o, err2 := w.operation(op); err2 == nil && o.State.Final() {
				w.Fatalf("the move ended before its stop: %s, %+v", o.State, o.Error)
			}
		}
		return err
	})
	return leader
}

func (w *world) say(host, word string) {
	w.Helper()
	must(w, writeWhole(w.shared(host, "word"), []byte(word)))
}

// killDaemon kills a host's daemon, which is started anew.
func (w *world) killDaemon(host string) {
	w.Helper()
	w.in(host, `kill -9 $(pgrep -f '^polder serve')`)
}

func (w *world) other(not ...string) string {
	for _, h := range w.hosts {
		if !slices.Contains(not, h) {
			return h
		}
	}
	return ""
}
