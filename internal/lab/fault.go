package lab

import (
	"context"
	"errors"

	"polder/api"
)

// Kill ends everything that runs in a host at once, as a power cut does: nothing gets to tidy up. Its disk is kept. It
// is no error when the host is not running.
func (l *Lab) Kill(ctx context.Context, name string) error {
	return l.change(name, func(n int) error { return l.killHost(ctx, n) })
}

// killHost also removes what is left of a host that died by itself.
func (l *Lab) killHost(ctx context.Context, n int) error {
	loops := hostLoops(l.initPID(nameOf(n)))
	dir, err := l.cgroup(nameOf(n))
	if err != nil {
		return err
	}
	if err := killCgroup(ctx, dir); err != nil {
		return err
	}
	for _, d := range loops {
		d.detach()
	}
	detachOrphans()
	return l.waitPools(ctx, n)
}

// Start starts a host that was killed, with the disk that it had, and waits until its daemon answers.
func (l *Lab) Start(ctx context.Context, name string, report Report) error {
	return l.change(name, func(n int) error {
		if l.initPID(name) != 0 {
			return api.Errorf(api.Precondition, "lab host %s is running already", name)
		}
		r, err := l.makeBase(UpOptions{})
		if err != nil {
			return err
		}
		if _, err := l.copyBinary(); err != nil {
			return err
		}
		b := l.backend(r)
		base, err := b.prepare(ctx, report)
		if err != nil {
			return err
		}
		o, uplink, err := l.makeNetwork(ctx, r, report)
		if err != nil {
			return err
		}
		if err := b.makeHost(ctx, n, DefaultPoolSize); err != nil {
			return err
		}
		if err := l.writeNames(r, o); err != nil {
			return err
		}
		env := hostEnv{record: r, base: base, outside: o, uplink: uplink, daemon: l.daemon}
		if r.Cluster && !l.joined(n) && n != 1 {
			return l.joinUp(ctx, env, n, false, report)
		}
		wait, err := l.bringUp(ctx, env, n, "", false, report)
		if err != nil {
			return err
		}
		alone, err := l.mayLackMajority(r)
		if err == nil && alone {
			report("%s: is running; its daemon waits for more hosts of its cluster", name)
			return nil
		}
		return errors.Join(err, wait())
	})
}

// change runs f on a host of the lab, with the lab locked.
func (l *Lab) change(name string, f func(n int) error) error {
	if err := checkRoot(); err != nil {
		return err
	}
	if _, err := l.number(name); err != nil {
		return err
	}
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	n, err := l.number(name)
	if err != nil {
		return err
	}
	return f(n)
}
