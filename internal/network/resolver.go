package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/command"
)

// resolver is the network's dnsmasq process: DHCP, router advertisements and DNS. Its methods are not for concurrent use.
type resolver struct {
	files files
	log   *slog.Logger
}

// Waiting for dnsmasq. It starts in some milliseconds and reads a thousand leases in as many.
const (
	stopGrace     = 2 * time.Second
	readGrace     = 5 * time.Second
	answerTimeout = 50 * time.Millisecond
	retryAfter    = 200 * time.Microsecond
	portGrace     = 200 * time.Millisecond // for a process that was killed to let go of its ports
)

// ensure sees to it that dnsmasq runs with the configuration that belongs to cfg. One that does is left alone. It returns
// the port of DNS, and whether the process is new.
func (r *resolver) ensure(ctx context.Context, cfg Config) (port int, started bool, err error) {
	account := dnsmasqAccount()
	running, err := r.find()
	if err != nil {
		return 0, false, err
	}
	defer running.close()
	if running != nil {
		for _, port := range []int{portDNS, portDNSElse} {
			// The process was started with what is in the file: it is stopped before the file is changed.
			if hasContent(r.files.conf, []byte(dnsmasqConf(cfg, r.files, account, port))) {
				return port, false, nil
			}
		}
	}
	if err := r.stop(); err != nil {
		return 0, false, err
	}
	if port, err = freePort(cfg); err != nil {
		return 0, false, err
	}
	if err := writeFile(r.files.conf, []byte(dnsmasqConf(cfg, r.files, account, port))); err != nil {
		return 0, false, err
	}
	if err := r.start(ctx, cfg); err != nil {
		return 0, false, fmt.Errorf("network %q: start dhcp and dns: %w", cfg.Name, err)
	}
	r.log.Info("dnsmasq started", "network", cfg.Name, "dns_port", port)
	return port, true, nil
}

// start starts dnsmasq, which goes into the background by itself once its sockets are open.
func (r *resolver) start(ctx context.Context, cfg Config) error {
	for path, empty := range map[string][]byte{r.files.hosts: hostsFile(cfg, nil), r.files.dhcp: nil} {
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := writeFile(path, empty); err != nil {
			return err
		}
	}
	_, err := command.Run(ctx, nil, "dnsmasq", r.argument())
	return err
}

// argument tells our dnsmasq from others, also by its command line.
func (r *resolver) argument() string { return "--conf-file=" + r.files.conf }

// freePort is 53, or the other port when another resolver of this host has 53 on every address.
func freePort(cfg Config) (int, error) {
	var taken error
	for _, port := range []int{portDNS, portDNSElse} {
		for deadline := time.Now().Add(portGrace); ; time.Sleep(time.Millisecond) {
			if taken = bindable(cfg, port); taken == nil {
				return port, nil
			}
			if !errors.Is(taken, unix.EADDRINUSE) || time.Now().After(deadline) {
				break
			}
		}
	}
	return 0, api.Errorf(api.Conflict, "network %q: no port for dns (see: ss -lnp 'sport = :53'): %w", cfg.Name, taken)
}

func bindable(cfg Config, port int) error {
	for _, addr := range []netip.Addr{cfg.IPv4.Addr(), cfg.IPv6.Addr()} {
		at := netip.AddrPortFrom(addr, uint16(port))
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		_ = udp.Close()
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		_ = tcp.Close()
	}
	return nil
}

// serve makes dnsmasq read new leases and returns once it answers by them. gone are addresses that it must forget, by MAC.
func (r *resolver) serve(ctx context.Context, cfg Config, port int, hosts, dhcp []byte) error {
	want := hosts[bytes.LastIndexByte(hosts[:len(hosts)-1], '\n')+1:]
	want, _, _ = bytes.Cut(want, []byte(" "))
	serial, err := netip.ParseAddr(string(want))
	if err != nil {
		return err
	}
	before, _ := os.ReadFile(r.files.dhcp)
	if hasContent(r.files.hosts, hosts) && bytes.Equal(before, dhcp) && r.answers(cfg, port, serial) {
		return nil
	}
	if err := writeFile(r.files.hosts, hosts); err != nil {
		return err
	}
	if err := writeFile(r.files.dhcp, dhcp); err != nil {
		return err
	}
	if err := release(cfg, leased(before), leased(dhcp)); err != nil {
		return err
	}
	p, err := r.find()
	if err != nil {
		return err
	}
	defer p.close()
	if p != nil {
		if err := p.signal(unix.SIGHUP); err != nil {
			return err
		}
	}
	return r.await(ctx, cfg, port, serial)
}

// await returns once dnsmasq answers by the leases with this serial. A question that arrives together with the signal may
// still be answered from before.
func (r *resolver) await(ctx context.Context, cfg Config, port int, serial netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, readGrace)
	defer cancel()
	for !r.answers(cfg, port, serial) {
		select {
		case <-ctx.Done():
			return api.Errorf(api.Unavailable, "network %q: dns does not answer by the new leases: dnsmasq is stuck, or its user can't read %s", cfg.Name, r.files.hosts)
		case <-time.After(retryAfter):
		}
	}
	return nil
}

// answers asks dnsmasq once for the serial of what it has read.
func (r *resolver) answers(cfg Config, port int, serial netip.Addr) bool {
	question := new(dns.Msg).SetQuestion(serialName(cfg)+".", dns.TypeAAAA)
	client := dns.Client{Timeout: answerTimeout}
	reply, _, err := client.Exchange(question, net.JoinHostPort(cfg.IPv4.Addr().String(), strconv.Itoa(port)))
	if err != nil || len(reply.Answer) != 1 {
		return false
	}
	answer, ok := reply.Answer[0].(*dns.AAAA)
	return ok && answer.AAAA.Equal(serial.AsSlice())
}

// release makes dnsmasq forget the addresses that are no longer a MAC's, as if that client had given them up: it would
// give them to nobody else otherwise, and go on answering for the old name.
func release(cfg Config, before, after map[string]netip.Addr) error {
	var conn *net.UDPConn
	for text, addr := range before {
		mac, err := net.ParseMAC(text)
		if after[text] == addr || err != nil {
			continue
		}
		if conn == nil {
			server := netip.AddrPortFrom(cfg.IPv4.Addr(), 67)
			if conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(server)); err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
		}
		if _, err := conn.Write(releaseMessage(mac, addr, cfg.IPv4.Addr())); err != nil {
			return err
		}
	}
	return nil
}

// stop ends every dnsmasq that was started with our configuration, also one whose pid file is lost.
func (r *resolver) stop() error {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		p, err := r.process(pid)
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		err = p.end(stopGrace)
		p.close()
		if err != nil {
			return err
		}
		r.log.Info("dnsmasq stopped", "pid", pid)
	}
	return removeFile(r.files.pid)
}

// find finds the running dnsmasq by its pid file; nil when there is none.
func (r *resolver) find() (*process, error) {
	text, err := os.ReadFile(r.files.pid)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil || pid <= 0 {
		return nil, nil
	}
	return r.process(pid)
}

// process opens a process if it is our dnsmasq. What is opened stays the same process, whatever becomes of its pid.
func (r *resolver) process(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{fd: fd, pid: pid}
	argv, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	args := bytes.Split(argv, []byte{0})
	if err != nil || len(args) < 2 || filepath.Base(string(args[0])) != "dnsmasq" || string(args[1]) != r.argument() {
		p.close()
		return nil, nil
	}
	return p, nil
}

// process is an open process; nil is none.
type process struct{ fd, pid int }

func (p *process) close() {
	if p != nil {
		_ = unix.Close(p.fd)
	}
}

// signal sends a signal; a process that has ended is no error.
func (p *process) signal(s unix.Signal) error {
	if err := unix.PidfdSendSignal(p.fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// end terminates the process, kills it after grace, and returns when it is gone.
func (p *process) end(grace time.Duration) error {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := p.signal(s); err != nil {
			return err
		}
		deadline := time.Now().Add(grace)
		for left := grace; left > 0; left = time.Until(deadline) {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
			if n == 1 {
				return nil
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	return fmt.Errorf("process %d: does not end", p.pid)
}
