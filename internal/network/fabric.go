package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"polder/api"
	"polder/internal/model"
)

// Fabric is this host's part of a network: it brings it up and down, publishes leases, and plugs VEs in.
type Fabric struct {
	// Prober is the command that runs the function Prober, for probes in a process of their own; empty: they run in this one. It is set
	// before the first Probe.
	Prober []string

	dir      string
	log      *slog.Logger
	sysctls  sysctls
	resolver resolver

	changing sync.Mutex // held while the network is changed; taken before mu
	overlay  sync.Mutex // held while the overlay's entries are changed; taken before mu

	mu      sync.Mutex
	cfg     *Config // the network that is up; guarded by mu
	dnsPort int     // on which its DNS listens; guarded by mu
	// next is the publication that is still to begin, for later callers to share; guarded by mu.
	next *publication
}

// publication is one reading of leases that several callers wait for.
type publication struct {
	done chan struct{}
	err  error
}

// publishTimeout bounds a publication; it does not end with the request that began it, as others wait for it.
const publishTimeout = 10 * time.Second

var _ model.Plug = (*Fabric)(nil)

// NewFabric keeps its files in dir, which Up makes. dnsmasq's user must be able to get there, and dir should be below
// /run: what is in it holds until the host boots.
func NewFabric(dir string, log *slog.Logger) *Fabric {
	return &Fabric{
		dir: dir, log: log,
		sysctls:  sysctls{file: filepath.Join(dir, "sysctl.json")},
		resolver: resolver{files: filesIn(dir), log: log},
	}
}

// Up brings the network up, or adopts what is there of it and mends the rest; adopting takes milliseconds and disturbs
// nothing. Errors: api.Conflict when the bridge's name or the prefixes are something else's on this host,
// api.Unsupported when a tool or IPv6 is missing.
func (f *Fabric) Up(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if _, err := os.Stat(procSys + "net/ipv6"); err != nil {
		return api.Errorf(api.Unsupported, "network %q: this kernel runs without ipv6: remove ipv6.disable=1 from its command line", cfg.Name)
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	if err := f.save(cfg); err != nil {
		return fmt.Errorf("network %q: %w", cfg.Name, err)
	}
	if err := f.sysctls.forward(); err != nil {
		return fmt.Errorf("network %q: switch on forwarding: %w", cfg.Name, err)
	}
	if err := bridgeUp(cfg, &f.sysctls, f.log); err != nil {
		return err
	}
	port, _, err := f.resolver.ensure(ctx, cfg)
	if err != nil {
		return err
	}
	if err := f.firewall(ctx, cfg, port); err != nil {
		return err
	}
	f.mu.Lock()
	f.cfg, f.dnsPort = &cfg, port
	f.mu.Unlock()
	return nil
}

// firewall sets up address translation, and passage through other firewalls, where they are not there yet.
func (f *Fabric) firewall(ctx context.Context, cfg Config, dnsPort int) error {
	present, err := listChains(ctx)
	if err == nil {
		err = rulesUp(ctx, cfg, dnsPort, present)
	}
	if err == nil {
		err = admit(ctx, cfg, dnsPort, present, f.log)
	}
	return err
}

// Down removes all that Up made on this host, also when another process made it, and puts kernel settings back. It can
// be repeated.
func (f *Fabric) Down(ctx context.Context) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	f.mu.Lock()
	f.cfg = nil
	f.mu.Unlock()
	errs := []error{f.resolver.stop(), dismiss(ctx), rulesDown(ctx)}
	if cfg, err := f.saved(); err != nil {
		errs = append(errs, err)
	} else if cfg != nil {
		errs = append(errs, linkDown(cfg.overlayLink(), "vxlan"), cryptDown(ctx, *cfg), linkDown(cfg.hostPort(), "veth"), bridgeDown(*cfg))
	}
	errs = append(errs, f.sysctls.restore())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(f.dir)
}

// SetLeases publishes the leases that list returns, as all there are, and returns when DHCP and DNS answer by them.
// Calls at the same time share one reading. As list is called when it is this call's turn, the newest state wins
// whichever order the callers come in. dnsmasq is started if it died.
func (f *Fabric) SetLeases(ctx context.Context, cfg Config, list func(context.Context) ([]Lease, error)) error {
	f.mu.Lock()
	p := f.next
	if p == nil {
		p = &publication{done: make(chan struct{})}
		f.next = p
		go f.publish(context.WithoutCancel(ctx), cfg, p, list)
	}
	f.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return api.Errorf(api.Cancelled, "network %q: publish leases: %w", cfg.Name, ctx.Err())
	}
}

// publish carries out a publication when the one before it has ended.
func (f *Fabric) publish(ctx context.Context, cfg Config, p *publication, list func(context.Context) ([]Lease, error)) {
	defer close(p.done)
	f.changing.Lock()
	defer f.changing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	f.mu.Lock()
	f.next = nil // whoever comes now may have changed what list is about to read
	f.mu.Unlock()
	leases, err := list(ctx)
	if err == nil {
		err = checkLeases(leases)
	}
	if err != nil {
		p.err = err
		return
	}
	port, started, err := f.resolver.ensure(ctx, cfg)
	if err == nil && started { // the port may be another one
		err = f.firewall(ctx, cfg, port)
	}
	if err == nil {
		err = f.resolver.serve(ctx, cfg, port, hostsFile(cfg, leases), dhcpFile(leases))
	}
	p.err = err
}

// checkLeases keeps out what would become another line in a file.
func checkLeases(leases []Lease) error {
	for _, l := range leases {
		if err := api.CheckName("ve", l.Name); err != nil {
			return err
		}
		if _, err := net.ParseMAC(l.MAC); err != nil || !l.IPv4.Addr().Is4() || !l.IPv6.Addr().Is6() {
			return api.Errorf(api.Invalid, "lease of ve %q: mac %q, ipv4 %s, ipv6 %s: not complete", l.Name, l.MAC, l.IPv4, l.IPv6)
		}
	}
	return nil
}

func (f *Fabric) configFile() string { return filepath.Join(f.dir, "network.json") }

// save keeps the config for a Down by another process. It is not changed while the bridge of another one is there.
func (f *Fabric) save(cfg Config) error {
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return err
	}
	old, err := f.saved()
	if err != nil {
		return err
	}
	if old != nil && (old.Bridge != cfg.Bridge || old.bridgeMAC().String() != cfg.bridgeMAC().String()) {
		if link, err := ownBridge(*old); err != nil || link != nil {
			return errors.Join(err, api.Errorf(api.Conflict, "bridge %q is up with %s and %s: it can't become %q with %s and %s", old.Bridge, old.IPv4, old.IPv6, cfg.Bridge, cfg.IPv4, cfg.IPv6))
		}
	}
	text, err := json.Marshal(cfg)
	if err != nil || hasContent(f.configFile(), text) {
		return err
	}
	return writeFile(f.configFile(), text)
}

// saved is the config that was brought up last; nil when there is none.
func (f *Fabric) saved() (*Config, error) {
	text, err := os.ReadFile(f.configFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var cfg Config
	if err == nil {
		err = json.Unmarshal(text, &cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("read the network's configuration: %w", err)
	}
	return &cfg, nil
}
