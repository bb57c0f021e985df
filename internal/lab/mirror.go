package lab

import (
	"bufio"
	"context"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// outside is what lab hosts may reach: package mirrors, and the name servers to find them with.
type outside struct {
	mirrors   map[string][]netip.Addr // by host name
	ports     []string                // of the mirrors
	resolvers []netip.Addr
}

// debianMirrors are allowed besides those in the machine's own sources.
var debianMirrors = []string{"http://deb.debian.org/debian", "http://security.debian.org/debian-security"}

// findOutside resolves the mirrors. Names that don't resolve are left out: a machine without a network has none.
func findOutside(ctx context.Context) outside {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	o := outside{mirrors: map[string][]netip.Addr{}, resolvers: machineResolvers()}
	ports := map[string]bool{"80": true, "443": true}
	for _, u := range append(slices.Clone(debianMirrors), machineSources()...) {
		if parsed, err := url.Parse(u); err == nil && parsed.Hostname() != "" {
			o.mirrors[parsed.Hostname()] = nil
			if p := parsed.Port(); p != "" {
				ports[p] = true
			}
		}
	}
	var mu sync.Mutex // guards o.mirrors
	var wg sync.WaitGroup
	for _, name := range slices.Collect(maps.Keys(o.mirrors)) {
		wg.Go(func() {
			found, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", name)
			if err != nil {
				return
			}
			var addrs []netip.Addr
			for _, a := range found {
				if a = a.Unmap(); !a.IsLoopback() {
					addrs = append(addrs, a)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			o.mirrors[name] = addrs
		})
	}
	wg.Wait()
	o.ports = slices.Sorted(maps.Keys(ports))
	return o
}

// addresses are those of all mirrors, in order and each once.
func (o outside) addresses() []netip.Addr {
	var all []netip.Addr
	for _, addrs := range o.mirrors {
		all = append(all, addrs...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// machineSources are the package sources that apt on this machine uses.
func machineSources() []string {
	var all []string
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err == nil {
				all = append(all, sourceURLs(string(text))...)
			}
		}
	}
	return all
}

// sourceURLs finds the http URLs in an apt sources file, of the one-line form or of deb822 (sources.list(5)).
func sourceURLs(text string) []string {
	var list []string
	var continued bool
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		key := ""
		if len(fields) > 0 {
			key = strings.ToLower(fields[0])
		}
		indented := strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")
		continued = strings.HasPrefix(key, "uris:") || continued && indented
		if !continued && key != "deb" && key != "deb-src" {
			continue
		}
		for _, f := range fields {
			f = strings.TrimPrefix(f, "URIs:")
			if strings.HasPrefix(f, "#") {
				break
			}
			if strings.HasPrefix(f, "http://") || strings.HasPrefix(f, "https://") {
				list = append(list, f)
			}
		}
	}
	return list
}

// debianSource is the mirror that this machine gets Debian from, or the one everybody can use.
func debianSource(urls []string) string {
	for _, u := range urls {
		if strings.HasSuffix(strings.TrimSuffix(u, "/"), "/debian") {
			return strings.TrimSuffix(u, "/")
		}
	}
	return debianMirrors[0]
}

// machineResolvers are the name servers of this machine that its lab can reach too: not those on the loopback.
func machineResolvers() []netip.Addr {
	var list []netip.Addr
	for _, f := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if list = nameservers(string(text)); len(list) > 0 {
			break
		}
	}
	return list
}

func nameservers(resolvConf string) []netip.Addr {
	var list []netip.Addr
	lines := bufio.NewScanner(strings.NewReader(resolvConf))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && a.Is4() && !a.IsLoopback() {
			list = append(list, a)
		}
	}
	return list
}
