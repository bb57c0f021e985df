package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"polder/api"
	"polder/client"
)

// linkRate is what the links between the hosts are shaped to; linkMiB is what that is in MiB a second.
const (
	linkRate = "1gbit"
	linkMiB  = 119
)

// moveOptions are the flags of `bench move`.
type moveOptions struct {
	image    string
	turns    int
	vmTurns  int
	sizes    string
	counts   string
	budget   time.Duration
	parallel int
	rates    string
}

// moves is the stage of the measurements of moves: a lab of three hosts, and a prober in a VE on the third.
type moves struct {
	*bench
	moveOptions
	loadBefore string
}

var moveMeasurements = []struct {
	name string
	run  func(ctx context.Context, m *moves) error
}{
	{"container", measureContainerMoves},
	{"vm", measureVMMoves},
	{"parallel", measureParallelMoves},
	{"disk", measureDiskMoves},
}

// move is the program `bench move`.
func move(args []string) (err error) {
	m := &moves{bench: &bench{report: &report{began: time.Now()}}}
	flags := flag.NewFlagSet("bench move", flag.ExitOnError)
	flags.StringVar(&m.polder, "polder", "bin/polder", "the `PROGRAM` to measure")
	flags.StringVar(&m.dir, "dir", "/var/lib/polder-bench", "`DIRECTORY` for the lab; removed at the end")
	flags.StringVar(&m.out, "out", "", "write the tables to this `FILE`, keeping the rest of it (default: print them)")
	flags.StringVar(&m.only, "only", "", "some of container, vm, parallel, disk, with commas between, instead of `ALL`")
	flags.StringVar(&m.image, "image", "", "a root `TAR` of debian/13, instead of building one")
	flags.BoolVar(&m.keep, "keep", false, "leave the lab running, for the next run to use")
	flags.IntVar(&m.turns, "turns", 3, "`NUMBER` of moves of each kind")
	flags.IntVar(&m.vmTurns, "vm-turns", 1, "`NUMBER` of moves of a VM of each kind")
	flags.IntVar(&m.parallel, "parallel", 20, "`NUMBER` of moves at once")
	flags.StringVar(&m.sizes, "sizes", "64,256,1024", "how many `MIB` the containers hold")
	flags.StringVar(&m.counts, "processes", "1,6,50", "in how `MANY` processes")
	flags.DurationVar(&m.budget, "budget", 30*time.Second, "how long a VM may take with virsh, which has no end of its own")
	flags.StringVar(&m.rates, "rates", "0,25,50,90,150", "at which `PERCENT` of the link a VM writes memory")
	_ = flags.Parse(args) // it exits
	if os.Geteuid() != 0 {
		return errors.New("namespaces take root: run it as root")
	}
	if m.polder, err = filepath.Abs(m.polder); err != nil {
		return err
	}
	var chosen []string
	for _, one := range moveMeasurements {
		if m.only == "" || slices.Contains(strings.Split(m.only, ","), one.name) {
			chosen = append(chosen, one.name)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("-only %s: want container, vm, parallel or disk", m.only)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if !m.keep {
		defer func() { err = errors.Join(err, m.leave(context.WithoutCancel(ctx))) }()
	}
	if m.loadBefore, err = loadNow(); err != nil {
		return err
	}
	if err := m.up(ctx); err != nil {
		return err
	}
	for _, one := range moveMeasurements {
		if !slices.Contains(chosen, one.name) {
			continue
		}
		began := time.Now()
		if err := one.run(ctx, m); err != nil {
			fmt.Print(m.report)
			return fmt.Errorf("measure moves, %s: %w", one.name, err)
		}
		m.say("%s took %s", one.name, time.Since(began).Round(time.Second))
	}
	if m.report.machine, err = m.describe(ctx); err != nil {
		return err
	}
	return m.report.write(m.out, "moves")
}

// up makes the lab, with the images at both ends of the moves and links of a known rate.
func (m *moves) up(ctx context.Context) error {
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return err
	}
	m.say("starting a lab of three hosts in %s", m.dir)
	if _, err := m.cli(ctx, "lab", "up", "--hosts", "3"); err != nil {
		return err
	}
	var err error
	if m.client, err = client.New("unix://" + m.socket()); err != nil {
		return err
	}
	if !m.keep {
		if err := m.clear(ctx); err != nil {
			return err
		}
	}
	if err := m.shareProgram(); err != nil {
		return err
	}
	if err := m.images(ctx); err != nil {
		return err
	}
	if err := m.launch(ctx, "prober", serviceImage, "h3"); err != nil {
		return err
	}
	for _, host := range []string{"h1", "h2", "h3"} {
		if _, err := m.cli(ctx, "lab", "shape", host, "--rate", linkRate); err != nil {
			return err
		}
	}
	return nil
}

// leave removes the lab.
func (m *moves) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := m.cli(ctx, "lab", "down"); err != nil {
		return err
	}
	return os.RemoveAll(m.dir)
}

// clear deletes the VEs of an earlier run.
func (m *moves) clear(ctx context.Context) error {
	ves, err := m.client.VEs(ctx)
	if err != nil {
		return err
	}
	for _, ve := range ves {
		if err := m.delete(ctx, ve.Name); err != nil {
			return err
		}
	}
	return nil
}

// launch starts a VE and waits until its load answers. One that an earlier run has left is used again, wherever it is.
func (m *moves) launch(ctx context.Context, name, image, host string, more ...string) error {
	if _, err := m.client.VE(ctx, name); api.KindOf(err) == api.NotFound {
		_, err = m.cli(ctx, append([]string{"launch", image, name, "--host", host}, more...)...)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if name == "prober" {
		return nil
	}
	_, err := m.ask(ctx, name, "echo")
	return err
}

// host that a VE is on.
func (m *moves) host(ctx context.Context, name string) (string, error) {
	ve, err := m.client.VE(ctx, name)
	return ve.Host, err
}

// done deletes a VE, unless the next run is to use it.
func (m *moves) done(ctx context.Context, name string) error {
	if m.keep {
		return nil
	}
	return m.delete(ctx, name)
}

func (m *moves) address(ctx context.Context, name string) (string, error) {
	ve, err := m.client.VE(ctx, name)
	if err != nil {
		return "", err
	}
	for _, a := range ve.Addresses {
		if ip, err := netip.ParseAddr(strings.Split(a.Address, "/")[0]); err == nil && ip.Is4() {
			return ip.String(), nil
		}
	}
	return "", fmt.Errorf("%q has no address", name)
}

// ask tells the load in a VE something.
func (m *moves) ask(ctx context.Context, name string, words ...string) (string, error) {
	address, err := m.address(ctx, name)
	if err != nil {
		return "", err
	}
	out, err := m.cli(ctx, append([]string{"exec", "prober", "--", "/sbin/init", insideAsk, address}, words...)...)
	return strings.TrimSpace(out), err
}

// watch starts probing an address from the VE on the third host.
func (m *moves) watch(ctx context.Context, name string) (*prober, error) {
	address, err := m.address(ctx, name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, m.polder, "exec", "prober", "--", "/sbin/init", insideProbe, address)
	cmd.Env = append(os.Environ(), m.env()...)
	p, err := startProber(ctx, cmd)
	if err == nil {
		<-time.After(300 * time.Millisecond) // it answers before it is moved
	}
	return p, err
}

// moved is one move as it was seen.
type moved struct {
	api.MoveResult
	seen
}

// moveTo moves a VE while it is probed twice, by Polder and by the bench.
func (m *moves) moveTo(ctx context.Context, name, to string, more ...string) (r moved, err error) {
	p, err := m.watch(ctx, name)
	if err != nil {
		return r, err
	}
	out, err := m.cli(ctx, append([]string{"move", name, "--to", to, "-o", "json"}, more...)...)
	seen, stopped := p.stop()
	if err := errors.Join(err, stopped); err != nil {
		return r, err
	}
	r.seen = seen
	return r, decode(out, &r.MoveResult)
}

// numbers reads a list with commas between.
func numbers(text string) (all []int, err error) {
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// inShort is an error's last words, for a table.
func inShort(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	return "failed: " + strings.ReplaceAll(text[max(0, len(text)-160):], "|", "/")
}

// other end of the moves.
func other(host string) string {
	if host == "h1" {
		return "h2"
	}
	return "h1"
}

// scores are what moves of one kind scored.
type scores struct{ outage, icmp, udp, total, bytes sample }

func (s *scores) add(r moved) {
	s.outage.add(float64(r.OutageMS))
	s.icmp.add(r.ICMP)
	s.udp.add(r.UDP)
	s.total.add(float64(r.TotalMS) / 1000)
	s.bytes.add(float64(r.TransferredBytes) / (1 << 20))
}
