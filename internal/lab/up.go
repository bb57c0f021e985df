package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"polder/api"
)

// Report tells the user about a step, as it happens: a line without its end.
type Report func(format string, args ...any)

// UpOptions say what Up makes.
type UpOptions struct {
	Hosts    int       // how many there shall be at least; 0: 1
	Backend  Backend   // what they are made of; "": that of the lab when it is up, else Namespaces
	Alone    bool      // a new lab's hosts are each a cluster of its own, instead of one together
	Sites    int       // of a new lab: hosts are spread over site1, site2, …; 0: no site
	PoolSize api.Bytes // of new hosts; 0: DefaultPoolSize
	NoDaemon bool      // new hosts run no daemon until they are started again: they are for tests of its parts
	Report   Report    // nil: silence
}

// HostState is what a lab host does.
type HostState string

// The states.
const (
	HostRunning HostState = "running"
	HostCut     HostState = "cut"     // running, its cable to the switch is cut
	HostStopped HostState = "stopped" // killed; its disk is kept
)

// Host is one host of a lab.
type Host struct {
	Name    string    `json:"name"`
	State   HostState `json:"state"`
	PID     int       `json:"pid"` // of the host's PID 1, on the machine; 0: not running
	Address string    `json:"address"`
	Socket  string    `json:"socket"`
	Log     string    `json:"log"`
	Shape   *Shape    `json:"shape,omitempty"`    // of its cable; nil: a plain one
	CutFrom []string  `json:"cut_from,omitempty"` // hosts that it was cut from, one by one
}

// URL is what the command line and other clients reach the host's daemon by.
func (h Host) URL() string { return "unix://" + h.Socket }

// Up makes a lab, or what is missing of it, and waits until the daemons answer: hosts that were killed are started, and
// more are added when there are fewer than asked for. When it fails or ctx ends it, hosts that it added are removed
// again, and the lab as a whole when it made it. Errors: api.Conflict while another command changes the lab.
func (l *Lab) Up(ctx context.Context, o UpOptions) ([]Host, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkRoot(); err != nil {
		return nil, err
	}
	unlock, err := l.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	before, err := l.hostNumbers()
	if err != nil {
		return nil, err
	}
	if err := l.up(ctx, o); err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err2 := l.undoUp(cleanup, before); err2 != nil {
			return nil, api.Errorf(api.KindOf(err), "%w; and afterwards: %v", err, err2)
		}
		return nil, err
	}
	return l.List()
}

func (o UpOptions) withDefaults() (UpOptions, error) {
	if o.Hosts == 0 {
		o.Hosts = 1
	}
	if o.PoolSize == 0 {
		o.PoolSize = DefaultPoolSize
	}
	if o.Report == nil {
		o.Report = func(string, ...any) {}
	}
	if o.Sites < 0 || o.Sites > MaxHosts {
		return o, api.Errorf(api.Invalid, "%d sites of a lab: want 0 to %d", o.Sites, MaxHosts)
	}
	if o.Hosts < 1 || o.Hosts > MaxHosts {
		return o, api.Errorf(api.Invalid, "%d lab hosts: want 1 to %d", o.Hosts, MaxHosts)
	}
	if o.PoolSize < leastPoolSize {
		return o, api.Errorf(api.Invalid, "pool size %s: want %s or more", o.PoolSize, leastPoolSize)
	}
	return o, nil
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return api.Errorf(api.Precondition, "change a lab: it takes root; try: sudo polder lab …")
	}
	return nil
}

func (l *Lab) up(ctx context.Context, o UpOptions) error {
	r, err := l.makeBase(o)
	if err != nil {
		return err
	}
	changed, err := l.copyBinary()
	if err != nil {
		return err
	}
	b := l.backend(r)
	base, err := b.prepare(ctx, o.Report)
	if err != nil {
		return err
	}
	out, uplink, err := l.makeNetwork(ctx, r, o.Report)
	if err != nil {
		return err
	}
	for n := 1; n <= o.Hosts; n++ {
		if err := b.makeHost(ctx, n, o.PoolSize); err != nil {
			return err
		}
	}
	if err := l.writeNames(r, out); err != nil {
		return err
	}
	all, err := l.hostNumbers()
	if err != nil {
		return err
	}
	env := hostEnv{record: r, base: base, outside: out, uplink: uplink, daemon: l.daemon}
	if o.NoDaemon {
		env.daemon = nil
	}
	if err := l.bringUpAll(ctx, env, all, changed, o.Report); err != nil {
		return err
	}
	if uplink && r.backend() == Namespaces {
		l.probe(ctx, all[0], out, o.Report)
	}
	return nil
}

// makeBase makes what is missing of what everything else stands on.
func (l *Lab) makeBase(o UpOptions) (*record, error) {
	r, err := l.readRecord()
	if err == nil && r == nil {
		r, err = l.makeRecord(o)
	}
	if err != nil {
		return nil, err
	}
	if why := o.differs(r); why != "" {
		return nil, api.Errorf(api.Conflict, "the lab in %s %s: first remove it with polder lab down, or set POLDER_LAB to another directory", l.dir, why)
	}
	if err := os.MkdirAll(l.Shared(), 0o755); err != nil {
		return nil, api.Errorf(api.Internal, "make the lab's shared directory: %w", err)
	}
	return r, l.makeCgroup(r)
}

// differs says what a lab that is there already has otherwise; "": nothing.
func (o UpOptions) differs(r *record) string {
	switch {
	case o.Backend != "" && o.Backend != r.backend():
		return fmt.Sprintf("has hosts of backend %q, not %q", r.backend(), o.Backend)
	case o.Alone && r.Cluster:
		return "is one cluster"
	case o.Sites != 0 && o.Sites != r.Sites:
		return fmt.Sprintf("has %d sites, not %d", r.Sites, o.Sites)
	}
	return ""
}

// makeNetwork makes what is missing of the switch and the way out, and says whether there is one.
func (l *Lab) makeNetwork(ctx context.Context, r *record, report Report) (o outside, uplink bool, err error) {
	if err := l.makeSwitch(); err != nil {
		return o, false, err
	}
	o = findOutside(ctx)
	if err := l.setLinkRules(ctx, r); err != nil {
		return o, false, err
	}
	uplink, err = l.makeUplink(ctx, r, o)
	if err == nil && !uplink {
		report("switch: no Debian mirror can be found from here: hosts have no way out")
	}
	return o, uplink, err
}

// bringUp gets one host to the point where its daemon starts; wait is to be called then, and waits until that answers.
func (l *Lab) bringUp(ctx context.Context, env hostEnv, n int, token string, changed bool, report Report) (wait func() error, err error) {
	start := time.Now()
	name, b := nameOf(n), l.backend(env.record)
	daemon := len(env.daemon) > 0
	env.daemon = env.record.daemonOf(env.daemon, n, token)
	if pid := l.initPID(name); pid != 0 {
		if err := b.connect(env, n, pid); err != nil {
			return nil, err
		}
		var old time.Time
		if changed {
			if old, err = b.restart(ctx, n, pid); err != nil {
				return nil, err
			}
			report("%s: is running; its daemon is restarted, the program is a new one", name)
		} else {
			report("%s: is running", name)
		}
		return func() error {
			if !daemon {
				return nil
			}
			return l.waitReady(ctx, n, old)
		}, nil
	}
	if err := l.startHost(ctx, env, n); err != nil {
		return nil, err
	}
	return func() error {
		if daemon {
			if err := l.waitReady(ctx, n, time.Time{}); err != nil {
				return err
			}
		}
		report("%s: up in %s", name, seconds(start))
		return nil
	}, nil
}

// undoUp removes the hosts that were not there before, or the whole lab when there were none.
func (l *Lab) undoUp(ctx context.Context, before []int) error {
	if len(before) == 0 {
		return l.remove(ctx)
	}
	was := map[int]bool{}
	for _, n := range before {
		was[n] = true
	}
	now, err := l.hostNumbers()
	if err != nil {
		return err
	}
	for _, n := range now {
		if was[n] {
			continue
		}
		if err := l.killHost(ctx, n); err != nil {
			return err
		}
		if err := l.leave(ctx, n); err != nil {
			return err
		}
		if err := os.RemoveAll(l.path(nameOf(n))); err != nil {
			return api.Errorf(api.Internal, "remove lab host %s: %w", nameOf(n), err)
		}
	}
	return nil
}

// List gives the lab's hosts in order; none when there is no lab. Whether the daemons answer it does not ask.
func (l *Lab) List() ([]Host, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	numbers, err := l.hostNumbers()
	if err != nil {
		return nil, err
	}
	r, err := l.readRecord()
	if err != nil {
		return nil, err
	}
	cut := l.cablesCut()
	hosts := []Host{}
	for _, n := range numbers {
		h := Host{Name: nameOf(n), State: HostStopped, PID: l.initPID(nameOf(n)), Socket: l.socket(n)}
		h.Log = filepath.Join(l.path(nameOf(n)), "log", daemonLog)
		if r != nil {
			v4, _ := r.address(n)
			h.Address = v4.Addr().String()
			h.CutFrom = r.cutFrom(h.Name)
			if s, ok := r.Shapes[h.Name]; ok {
				h.Shape = &s
			}
		}
		switch {
		case h.PID != 0 && cut[h.Name]:
			h.State = HostCut
		case h.PID != 0:
			h.State = HostRunning
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}
