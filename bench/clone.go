package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"polder/api"
)

// cloneOptions are the flags of `bench clone`.
type cloneOptions struct {
	turns  int
	forks  string
	memory string
}

// clone is the program `bench clone`: clones of a container beside those of Incus, forks of a VM beside its boot, and snapshots
// with memory. It writes a part of the results of its own.
func clone(args []string) (err error) {
	b := &bench{report: &report{began: time.Now()}}
	var o cloneOptions
	flags := flag.NewFlagSet("clone", flag.ExitOnError)
	flags.StringVar(&b.polder, "polder", "bin/polder", "the `PROGRAM` to measure")
	flags.StringVar(&b.dir, "dir", "/var/lib/polder-bench", "`DIRECTORY` for the lab and for Incus; removed at the end")
	flags.StringVar(&b.out, "out", "", "write the table to this `FILE`, keeping what else is there (default: print it)")
	flags.IntVar(&o.turns, "turns", 10, "`NUMBER` of clones of each")
	flags.StringVar(&o.forks, "forks", "1,8,64", "`NUMBERS` of forks at once")
	flags.StringVar(&o.memory, "memory", "256MiB", "`SIZE` of the VM that is forked")
	flags.Parse(args) //nolint:errcheck // it exits
	if os.Geteuid() != 0 {
		return fmt.Errorf("namespaces and Incus take root: run it as root")
	}
	if b.polder, err = filepath.Abs(b.polder); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer func() {
		if e := b.down(context.WithoutCancel(ctx)); err == nil {
			err = e
		}
	}()
	if err := b.up(ctx); err != nil {
		return err
	}
	for _, measure := range []func(context.Context, *bench, cloneOptions) error{measureClones, measureForks, measureMemorySnapshot} {
		if err := measure(ctx, b, o); err != nil {
			fmt.Print(b.report)
			return err
		}
	}
	if b.report.machine, err = describe(ctx, b); err != nil {
		return err
	}
	return b.report.write(b.out, "clones")
}

// measureClones times a clone of a stopped container, started, until the first output of a command in it.
func measureClones(ctx context.Context, b *bench, o cloneOptions) error {
	floor, err := b.newFloor(ctx)
	if err != nil {
		return err
	}
	const source = "source"
	if _, err := b.cli(ctx, "launch", systemImage, source, "--no-start"); err != nil {
		return err
	}
	if _, err := b.incus.cli(ctx, "init", systemImage, source); err != nil {
		return err
	}
	var ours, theirs, bare sample
	for i := -1; i < o.turns; i++ { // the first round only warms up
		began := time.Now()
		if _, err := b.cli(ctx, "clone", source, "copy", "--start"); err != nil {
			return err
		}
		out, err := b.cli(ctx, "exec", "copy", "--", "echo", "ok")
		mine := milliseconds(time.Since(began))
		if err := says("ok", out, err); err != nil {
			return err
		}
		began = time.Now()
		for _, args := range [][]string{{"copy", source, "copy"}, {"start", "copy"}} {
			if _, err := b.incus.cli(ctx, args...); err != nil {
				return err
			}
		}
		out, err = b.incus.cli(ctx, "exec", "copy", "--", "echo", "ok")
		incus := milliseconds(time.Since(began))
		if err := says("ok", out, err); err != nil {
			return err
		}
		alone, err := floor.run(ctx)
		if err != nil {
			return err
		}
		if i >= 0 {
			ours.add(mine)
			theirs.add(incus)
			bare.add(alone)
		}
		if err := b.delete(ctx, "copy"); err != nil {
			return err
		}
		if _, err := b.incus.cli(ctx, "delete", "-f", "copy"); err != nil {
			return err
		}
		time.Sleep(settle)
	}
	over := sample{ours.median() - bare.median()}
	s := b.report.section("A container: clone of a stopped one, started, then the first output of exec")
	s.add(row{what: "clone, start and exec", unit: "ms", ours: ours, peer: "incus copy, start, exec", theirs: theirs})
	s.add(row{what: "– over crun run by itself, no network", unit: "ms", ours: over, peer: "crun run", theirs: bare, aim: below("50 ms", over, 50)})
	return b.delete(ctx, source)
}

// measureForks forks a VM that has booted, some at once.
func measureForks(ctx context.Context, b *bench, o cloneOptions) error {
	const source = "trunk"
	began := time.Now()
	if _, err := b.cli(ctx, "launch", systemImage, source, "--model", "vm", "--memory", o.memory); err != nil {
		return err
	}
	if _, err := b.cli(ctx, "exec", source, "--", "systemctl", "is-system-running", "--wait"); err != nil {
		return err
	}
	boot := sample{time.Since(began).Seconds()}
	time.Sleep(10 * time.Second) // until it is at rest
	s := b.report.section("A virtual machine of " + o.memory + ": forks of one that runs")
	for _, text := range strings.Split(o.forks, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("-forks %q: want numbers", o.forks)
		}
		var stood, restored, ready, command, own sample
		for range max(1, min(3, 8/n)) {
			began := time.Now()
			out, err := b.cli(ctx, "clone", source, "fork", "--live", "--count", text, "-o", "json")
			if err != nil {
				return err
			}
			var result api.CloneResult
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				return err
			}
			command.add(time.Since(began).Seconds())
			stood.add(float64(result.StoodMS))
			restored.add(float64(result.RestoredMS))
			ready.add(float64(result.ReadyMS) / 1000)
			total := 0.0
			for _, ve := range result.VEs {
				pid, err := b.qemu(ctx, ve.Name)
				if err != nil {
					return err
				}
				m, err := memoryOf(pid)
				if err != nil {
					return err
				}
				total += m.pss / (1 << 20)
			}
			own.add(total / float64(n))
			b.say("%d forks: stood %d ms, restored %d ms, ready %d ms", n, result.StoodMS, result.RestoredMS, result.ReadyMS)
			for _, ve := range result.VEs {
				if err := b.delete(ctx, ve.Name); err != nil {
					return err
				}
			}
			time.Sleep(5 * time.Second)
		}
		what := text + " at once: "
		s.add(row{what: what + "the VM that is forked stands still", unit: "ms", ours: stood, aim: below("50 ms", stood, 50)})
		r := row{what: what + "until all are there, with their memory", unit: "ms", ours: restored}
		switch n {
		case 1:
			r.aim = below("100 ms", restored, 100)
		case 64:
			r.aim = below("6 s", restored, 6000)
		}
		s.add(r)
		s.add(row{what: what + "until all run under their own identity", unit: "s", ours: ready, peer: "a boot of one", theirs: boot})
		s.add(row{what: what + "memory of each", unit: "MiB PSS", ours: own})
	}
	s.note("The times begin when the daemon tells the VM to stand still; what is done before its agent has answered is in them. A fork's identity is set from inside, by an emulated processor that has all its code to translate anew.")
	return b.delete(ctx, source)
}

// measureMemorySnapshot takes snapshots, with memory, of a VM of 1 GiB of which half is in use.
func measureMemorySnapshot(ctx context.Context, b *bench, _ cloneOptions) error {
	const name = "large"
	if _, err := b.cli(ctx, "launch", systemImage, name, "--model", "vm", "--memory", "1GiB"); err != nil {
		return err
	}
	if _, err := b.cli(ctx, "exec", name, "--", "sh", "-c", "systemctl is-system-running --wait; dd if=/dev/urandom of=/dev/shm/file bs=1M count=400 status=none; dd if=/dev/shm/file of=/run/file bs=1M count=80 status=none; true"); err != nil {
		return err
	}
	var stood, took sample
	for i := range 3 {
		began := time.Now()
		out, err := b.cli(ctx, "snapshot", "create", name, "s"+strconv.Itoa(i), "--memory", "-o", "json")
		if err != nil {
			return err
		}
		var result api.Snapshot
		if err := json.Unmarshal([]byte(out), &result); err != nil {
			return err
		}
		took.add(time.Since(began).Seconds())
		stood.add(float64(result.StoodMS))
	}
	s := b.report.section("A virtual machine of 1 GiB, half of it in use: a snapshot with its memory")
	s.add(row{what: "it stands still", unit: "ms", ours: stood, aim: below("300 ms", stood, 300)})
	s.add(row{what: "the command", unit: "s", ours: took})
	return b.delete(ctx, name)
}
