// Command services moves real services live, there and back, while others use them, and says what each of them noticed.
//
// It drives the finished program as a user would, in a lab of its own: a VE on the first host has the services, all from the
// distribution's packages; a VE on the third puts load on one after the other while the first is moved to the second host and back.
// It owns the services, their loads and what is checked afterwards (the scripts below in); it does not judge moves otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"polder/api"
)

// options are the flags.
type options struct {
	polder  string
	dir     string
	out     string
	model   string
	only    string
	image   string
	seconds int
	keep    bool
}

func main() {
	var o options
	flag.StringVar(&o.polder, "polder", "bin/polder", "the `PROGRAM` to try")
	flag.StringVar(&o.dir, "dir", "/var/lib/polder-services", "`DIRECTORY` of the lab; removed at the end")
	flag.StringVar(&o.out, "out", "", "put each line into the table of this `FILE` instead of the one that it has (default: print them)")
	flag.StringVar(&o.model, "model", "container", "`MODEL` of the VE that has the services: container or vm")
	flag.StringVar(&o.only, "only", "", "`NAMES` of services, separated by commas, instead of all")
	flag.StringVar(&o.image, "image", "", "import this `FILE`, an export of the image, instead of building it")
	flag.IntVar(&o.seconds, "seconds", 0, "`NUMBER` of seconds that each load lasts (default 20, for a vm 60)")
	flag.BoolVar(&o.keep, "keep", false, "leave the lab running, for the next run to use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "services:", err)
		os.Exit(1)
	}
}

// run sets the stage, tries the services, and clears up whatever happened. Services that broke are in the table, and are no error.
func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("a lab takes root: run it as root")
	}
	if o.polder, err = filepath.Abs(o.polder); err != nil {
		return err
	}
	if o.seconds == 0 {
		o.seconds = 20
		if o.model == string(api.VM) {
			o.seconds = 60
		}
	}
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	s := &stage{options: o}
	if s.work, err = os.MkdirTemp("", "polder-services-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.work)
	if !o.keep {
		defer func() {
			// A second Ctrl-C must not leave half of it behind.
			if e := s.down(context.WithoutCancel(ctx)); err == nil {
				err = e
			}
		}()
	}
	if err := s.up(ctx); err != nil {
		return err
	}
	if o.out == "" {
		fmt.Print(tableHead)
	}
	for _, service := range chosen {
		tried := s.try(ctx, service)
		if ctx.Err() != nil {
			return ctx.Err() // what it said of this one says nothing
		}
		// At once: what was found out stays, whatever becomes of the rest.
		if err := write(o.out, tried); err != nil {
			return err
		}
	}
	return nil
}

// choose finds services by their names; "" is all.
func choose(names string) ([]service, error) {
	if names == "" {
		return services, nil
	}
	var chosen []service
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(services, func(s service) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-only %s: there is no such service", name)
		}
		chosen = append(chosen, services[i])
	}
	return chosen, nil
}
