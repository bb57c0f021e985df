//go:build scenario

package test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"polder/api"
)

// The full run, by hand: go test -tags scenario -count=1 -timeout 1h -run TestChaos -v ./test -chaos.moves 200 -chaos.ves 8 -chaos.vms 2
var (
	chaosMoves    = flag.Int("chaos.moves", 8, "moves of TestChaos")
	chaosVEs      = flag.Int("chaos.ves", 3, "containers that it moves")
	chaosVMs      = flag.Int("chaos.vms", 0, "VMs that it moves")
	chaosParallel = flag.Int("chaos.parallel", 2, "moves at once")
	chaosEvery    = flag.Int("chaos.every", 3, "moves from one fault to the next, on average")
	chaosSeed     = flag.Uint64("chaos.seed", 1, "of what is chosen at random")
)

// chaosPatience is more than any one move may take, whatever happens to it.
const chaosPatience = 3 * time.Minute

// chaos moves VEs about while hosts die.
type chaos struct {
	t     *testing.T
	hosts []string
	ves   []string

	mu    sync.Mutex // guards what follows
	rand  *rand.Rand
	busy  map[string]bool   // VEs that this test moves just now
	at    map[string]string // VE → host, as far as the moves say
	down  string            // the host that is down, or cut off
	count map[string]int    // what was done, and how moves ended
}

// VEs go from host to host at random, daemons and hosts are killed and cables pulled meanwhile: in the end every VE runs once, where
// its record says, and nothing is left anywhere of where it was.
func TestChaos(t *testing.T) {
	c := &chaos{
		t: t, hosts: hosts, rand: rand.New(rand.NewPCG(*chaosSeed, 0)), busy: map[string]bool{}, at: map[string]string{}, count: map[string]int{},
	}
	whole(t)
	before := c.remains()
	for i := range *chaosVEs + *chaosVMs {
		name, flags := fmt.Sprintf("chaos%d", i), []string{"--host", c.hosts[i%len(c.hosts)]}
		if i >= *chaosVEs {
			flags = append(flags, "--model", "vm")
		}
		launch(t, "debian/13", name, flags...)
		c.ves, c.at[name] = append(c.ves, name), c.hosts[i%len(c.hosts)]
	}
	t.Logf("seed %d", *chaosSeed)
	defer c.explain()
	began := time.Now()
	c.run()
	t.Logf("%d moves in %v", *chaosMoves, time.Since(began).Round(time.Second))
	c.settled()
	for _, name := range slices.Sorted(maps.Keys(c.count)) {
		t.Logf("%4d × %s", c.count[name], name)
	}
	// Whatever happened to them, they move.
	for _, name := range c.ves[:min(2, len(c.ves))] {
		at := show[api.VE](t, "info", name).Host
		must(t, "move", name, "--to", c.hosts[(slices.Index(c.hosts, at)+1)%len(c.hosts)])
	}
	c.settled()
	for _, name := range c.ves {
		must(t, "delete", name, "--force")
	}
	eventually(t, time.Minute, func() string {
		now := c.remains()
		for _, host := range c.hosts {
			if now[host] != before[host] {
				return fmt.Sprintf("host %s before:\n%s\nnow:\n%s", host, before[host], now[host])
			}
		}
		return ""
	})
}

// run makes the moves, and a fault now and then.
func (c *chaos) run() {
	work := make(chan struct{})
	var movers, faults sync.WaitGroup
	for range *chaosParallel {
		movers.Go(func() {
			for range work {
				c.move()
			}
		})
	}
	for i := range *chaosMoves {
		if i > 0 && c.pick(*chaosEvery) == 0 {
			// One at a time: with two hosts of three away there is no majority.
			if host, hurt := c.fault(); host != "" {
				faults.Go(func() {
					hurt()
					c.mu.Lock()
					defer c.mu.Unlock()
					c.down = ""
				})
			}
		}
		work <- struct{}{}
	}
	close(work)
	movers.Wait()
	faults.Wait()
}

func (c *chaos) pick(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.IntN(n)
}

// fault chooses what is done to a host, unless another one is being hurt.
func (c *chaos) fault() (host string, hurt func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != "" {
		return "", nil
	}
	host = c.hosts[c.rand.IntN(len(c.hosts))]
	after := time.Duration(c.rand.IntN(2000)) * time.Millisecond
	lasts := time.Duration(1000+c.rand.IntN(7000)) * time.Millisecond
	what := c.rand.IntN(3)
	c.down = host
	return host, func() {
		<-time.After(after)
		switch what {
		case 0:
			c.note("kill the daemon")
			c.t.Logf("kill the daemon of %s", host)
			c.lab("exec", host, "--", "pkill", "-9", "-f", "^polder serve")
		case 1:
			c.note("kill the host")
			c.t.Logf("kill %s for %v", host, lasts)
			c.lab("kill", host)
			<-time.After(lasts)
			c.lab("start", host)
		case 2:
			c.note("cut the host off")
			c.t.Logf("cut %s off for %v", host, lasts)
			c.lab("cut", host)
			<-time.After(lasts)
			c.lab("heal", host)
		}
	}
}

func (c *chaos) note(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[what]++
}

// explain logs what became of the VEs that are not as they should be, in a test that has failed.
func (c *chaos) explain() {
	if !c.t.Failed() {
		return
	}
	for _, name := range c.ves {
		if complaint := c.once(name); complaint != "" {
			c.t.Logf("%s\n%s", complaint, polder(context.Background(), "info", name, "-o", "json").out)
			for _, op := range c.operations() {
				if op.Target == "ve/"+name {
					c.t.Logf("%s %s on %s, %s to %s: %s %v", op.ID, op.Kind, op.Host, op.CreatedAt.Format(time.TimeOnly), op.UpdatedAt.Format(time.TimeOnly), op.State, op.Error)
				}
			}
			for _, host := range c.hosts {
				c.t.Logf("log of %s:\n%s", host, polder(context.Background(), "lab", "exec", host, "--", "grep", "-w", name, "/var/log/polder/serve.log").out)
			}
		}
	}
}

func (c *chaos) lab(args ...string) {
	if r := polder(context.Background(), append([]string{"lab"}, args...)...); r.code != 0 {
		c.t.Errorf("lab %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
}

// move moves one VE, asking one host or another. It may fail, with a reason.
func (c *chaos) move() {
	c.mu.Lock()
	name := ""
	for name == "" || c.busy[name] {
		name = c.ves[c.rand.IntN(len(c.ves))]
	}
	c.busy[name] = true
	to, ask := c.hosts[c.rand.IntN(len(c.hosts))], c.hosts[c.rand.IntN(len(c.hosts))]
	for to == c.at[name] {
		to = c.hosts[c.rand.IntN(len(c.hosts))]
	}
	for ask == c.down {
		ask = c.hosts[c.rand.IntN(len(c.hosts))]
	}
	mode := []string{"auto", "live", "warm", "cold"}[c.rand.IntN(4)]
	interrupt := chaosPatience
	if c.rand.IntN(5) == 0 {
		interrupt = time.Duration(200+c.rand.IntN(3000)) * time.Millisecond
	}
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), chaosPatience)
	defer cancel()
	began := time.Now()
	r := interrupted(ctx, interrupt, ask, "move", name, "--to", to, "--mode", mode, "-o", "json")
	lines := strings.Split(strings.TrimSpace(r.err), "\n")
	last := lines[len(lines)-1]
	c.t.Logf("%s to %s, %s, asked of %s: exit %d after %v: %s", name, to, mode, ask, r.code, time.Since(began).Round(time.Millisecond), last)
	var done api.MoveResult
	json.Unmarshal([]byte(r.out), &done) //nolint:errcheck // there is none of a move that failed
	end := fmt.Sprintf("%s %s, state kept: %v: exit %d", mode, done.Mode, done.StateKept, r.code)
	early := r.code == -1 && interrupt < chaosPatience // Ctrl-C came before the program heeds it
	if r.code != 0 && !early && (!strings.HasPrefix(last, "error: ") || strings.HasSuffix(last, "cancelled") != (r.code == api.Cancelled.ExitCode()) || ctx.Err() != nil) {
		c.t.Errorf("%s to %s by %s: exit %d after %v, without a reason:\n%s", name, to, mode, r.code, time.Since(began), r.err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy[name] = false
	c.count[end]++
	if r.code == 0 {
		c.at[name] = to
	}
}

// interrupted is through, and presses Ctrl-C after a while.
func interrupted(ctx context.Context, after time.Duration, host string, args ...string) result {
	cmd := exec.CommandContext(ctx, binary(), args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "POLDER_HOST="+socketOf(host))
	if err := cmd.Start(); err != nil {
		return result{err: err.Error(), code: -1}
	}
	key := time.AfterFunc(after, func() { cmd.Process.Signal(os.Interrupt) }) //nolint:errcheck // it has ended
	defer key.Stop()
	cmd.Wait() //nolint:errcheck // its exit code says it
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// settled waits until no operation is under way, and every VE runs once, where its record says, and answers every host.
func (c *chaos) settled() {
	c.t.Helper()
	eventually(c.t, 2*time.Minute, func() string {
		for _, op := range c.operations() {
			if op.Error != nil && op.Error.Kind == api.Internal {
				c.t.Errorf("operation %s, %s of %s on %s: %s", op.ID, op.Kind, op.Target, op.Host, op.Error.Detail)
			}
			if !op.State.Final() {
				return fmt.Sprintf("operation %s, %s of %s on %s, is %s in step %q", op.ID, op.Kind, op.Target, op.Host, op.State, op.Step)
			}
		}
		for _, name := range c.ves {
			if complaint := c.once(name); complaint != "" {
				return complaint
			}
		}
		return ""
	})
}

func (c *chaos) operations() (ops []api.Operation) {
	text := polder(context.Background(), "op", "list", "-o", "json").out
	if err := json.Unmarshal([]byte(text), &ops); err != nil {
		return []api.Operation{{ID: "?", State: api.OperationRunning, Step: err.Error()}}
	}
	return ops
}

// once says what is wrong with a VE: it runs on one host, its record's, and is nowhere else.
func (c *chaos) once(name string) string {
	var v api.VE
	r := polder(context.Background(), "info", name, "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &v); err != nil {
		return fmt.Sprintf("info %s: exit %d: %s", name, r.code, r.err)
	}
	if v.State != api.Running {
		return fmt.Sprintf("%s is %s (%s) on %s", name, v.State, v.Reason, v.Host)
	}
	address, _, _ := strings.Cut(v.Addresses[0].Address, "/")
	for _, host := range c.hosts {
		script := fmt.Sprintf(`
			pgrep -f . | while read p; do grep -sqE '^0::/polder/%[1]s(/|$)' /proc/$p/cgroup && echo process $p; done | head -1
			ls -d /var/lib/polder/ve/%[2]s /var/lib/polder/pools/default/volumes/*%[2]s* 2>/dev/null`, name, v.ID)
		r := polder(context.Background(), "lab", "exec", host, "--", "sh", "-c", script)
		is, should := strings.Contains(r.out, "process"), host == v.Host
		if is != should || !should && r.out != "" {
			return fmt.Sprintf("%s should be on %s only; on %s: %q %s", name, v.Host, host, r.out, r.err)
		}
	}
	if r := polder(context.Background(), "lab", "exec", v.Host, "--", "ping", "-c1", "-W1", address); r.code != 0 {
		return fmt.Sprintf("%s does not answer its host %s: %s", name, v.Host, r.out)
	}
	other := c.ves[(slices.Index(c.ves, name)+1)%len(c.ves)]
	if r := polder(context.Background(), "exec", other, "--", "ping", "-c1", "-W1", name); r.code != 0 {
		return fmt.Sprintf("%s on %s does not answer %s: exit %d: %s%s", name, v.Host, other, r.code, r.out, r.err)
	}
	return ""
}

// remains is what there is of VEs on each host. The port from which a host probes is there from its first probe on.
func (c *chaos) remains() map[string]string {
	all := map[string]string{}
	for _, host := range c.hosts {
		r := polder(context.Background(), "lab", "exec", host, "--", "sh", "-c", `
			ls -A /var/lib/polder/ve /var/lib/polder/staging /var/lib/polder/pools/default/volumes /var/lib/polder/pools/default/trash
			find /sys/fs/cgroup/polder -mindepth 1 -type d 2>/dev/null; ls /run/polder/crun 2>/dev/null
			ip -o link | sed 's/^[0-9]*: //; s/[:@].*//' | grep -v '^polder0-[hp]$' | sort
			bridge fdb show dev polder0-x | grep dst | sort
			awk '{print $5}' /proc/self/mountinfo | grep polder | sort
			ps -eo comm= --sort comm | grep -E 'criu|qemu|crun|systemd'
			nft list tables; nft list ruleset | grep -c drop`)
		all[host] = r.out + r.err
	}
	return all
}
