// Command bench measures Polder against its peers, as a user sees it: the finished program in a lab, beside Incus, plain
// crun and a QEMU started by hand, on the same machine in the same run.
//
// It owns what is measured and how; it does not judge. Every comparison alternates between the contestants, so that what
// else happens on the machine happens to both, and is told as medians with the least and the most, and as a ratio. All that it
// starts is gone when it ends, also after a failure or Ctrl-C.
//
// `bench move` measures moves between three hosts: see move.go; `bench clone` clones, forks and snapshots: see clone.go.
//
// The same program is what runs inside the lab's host where a measurement has to start processes there: see inside.go.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	polder string // the program
	dir    string
	out    string
	only   string
	keep   bool

	launches, vms, idle, stopped, requests int
}

// measurement is one section of the results.
type measurement struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

var measurements = []measurement{
	{"launch", measureLaunch},
	{"vm", measureVM},
	{"idle", measureIdle},
	{"api", measureAPI},
}

func main() {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], insidePrefix) {
		exit(inside(os.Args[1], os.Args[2:]))
	}
	if os.Args[0] == "/sbin/init" { // it is the system of a container
		exit(serveLoad())
	}
	if len(os.Args) > 1 && os.Args[1] == "move" {
		exit(move(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "clone" {
		exit(clone(os.Args[2:]))
	}
	var o options
	flag.StringVar(&o.polder, "polder", "bin/polder", "the `PROGRAM` to measure")
	flag.StringVar(&o.dir, "dir", "/var/lib/polder-bench", "`DIRECTORY` for the lab and for Incus; removed at the end")
	flag.StringVar(&o.out, "out", "", "write the table to this `FILE`, keeping what follows it there (default: print it)")
	flag.StringVar(&o.only, "only", "", "one of launch, vm, idle, api instead of `ALL`")
	flag.BoolVar(&o.keep, "keep", false, "leave the lab and Incus running, for the next run to use")
	flag.IntVar(&o.launches, "launches", 20, "`NUMBER` of container launches of each")
	flag.IntVar(&o.vms, "vms", 3, "`NUMBER` of VM boots of each")
	flag.IntVar(&o.idle, "idle", 200, "`NUMBER` of idle containers")
	flag.IntVar(&o.stopped, "stopped", 1000, "`NUMBER` of stopped VEs that are listed")
	flag.IntVar(&o.requests, "requests", 50, "`NUMBER` of requests of each kind")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run sets the stage, measures, and clears up whatever happened.
func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("namespaces and Incus take root: run it as root")
	}
	if o.polder, err = filepath.Abs(o.polder); err != nil {
		return err
	}
	chosen := measurements
	if o.only != "" {
		chosen = slices.DeleteFunc(slices.Clone(measurements), func(m measurement) bool { return m.name != o.only })
	}
	if len(chosen) == 0 {
		return fmt.Errorf("-only %s: want launch, vm, idle or api", o.only)
	}
	b := &bench{options: o, report: &report{began: time.Now()}}
	if !o.keep {
		defer func() {
			// A second Ctrl-C must not leave half of it behind.
			if e := b.down(context.WithoutCancel(ctx)); err == nil {
				err = e
			}
		}()
	}
	if err := b.up(ctx); err != nil {
		return err
	}
	for _, m := range chosen {
		b.say("measuring %s", m.name)
		if err := m.run(ctx, b); err != nil {
			fmt.Print(b.report) // what there is of it, but not into the file
			return fmt.Errorf("measure %s: %w", m.name, err)
		}
	}
	if b.report.machine, err = describe(ctx, b); err != nil {
		return err
	}
	return b.report.write(o.out, "measured")
}
