package network

import (
	"embed"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldens are built in: the tests are also run where the sources are not.
//
//go:embed testdata
var goldens embed.FS

// golden compares with testdata/name, or rewrites that.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := goldens.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (rewrite it with -update):\n%s", name, diff)
	}
}

func testLeases(t *testing.T, names ...string) []Lease {
	t.Helper()
	taken := map[netip.Addr]bool{}
	leases := make([]Lease, len(names))
	for i, name := range names {
		l, err := Allocate(testConfig(), taken, "uuid-of-"+name)
		if err != nil {
			t.Fatal(err)
		}
		taken[l.IPv4.Addr()], taken[l.IPv6.Addr()] = true, true
		l.Name = name
		leases[i] = l
	}
	return leases
}

func TestRules(t *testing.T) {
	routed := testConfig()
	routed.NAT = false
	marks := map[string]bool{}
	for name, tc := range map[string]struct {
		cfg  Config
		port int
	}{
		"default.nft":        {testConfig(), portDNS},
		"port-elsewhere.nft": {testConfig(), portDNSElse},
		"routed.nft":         {routed, portDNS},
	} {
		text, mark := rules(tc.cfg, tc.port)
		golden(t, name, text)
		if marks[mark] {
			t.Errorf("%s: %s is another's mark", name, mark)
		}
		marks[mark] = true
	}
}

func TestDnsmasqFiles(t *testing.T) {
	leases := testLeases(t, "web1", "db")
	golden(t, "dnsmasq.conf", dnsmasqConf(testConfig(), filesIn("/run/polder/network"), "dnsmasq", portDNS))
	golden(t, "hosts", string(hostsFile(testConfig(), leases)))
	golden(t, "dhcp-hosts", string(dhcpFile(leases)))
	wide := testConfig()
	wide.IPv4 = netip.MustParsePrefix("172.20.16.1/20")
	golden(t, "dnsmasq-wide.conf", dnsmasqConf(wide, filesIn("/run/polder/network"), "nobody", portDNSElse))
}

// The order in which leases come must not matter: the files are compared to see what changed.
func TestFilesAreStable(t *testing.T) {
	a, b := testLeases(t, "a", "b", "c"), testLeases(t, "a", "b", "c")
	b[0], b[2] = b[2], b[0]
	if diff := cmp.Diff(string(hostsFile(testConfig(), a)), string(hostsFile(testConfig(), b))); diff != "" {
		t.Error(diff)
	}
	if string(hostsFile(testConfig(), a)) == string(hostsFile(testConfig(), a[:2])) {
		t.Error("other leases, same file")
	}
}

func TestLeasedReadsBack(t *testing.T) {
	leases := testLeases(t, "a", "b")
	want := map[string]netip.Addr{leases[0].MAC: leases[0].IPv4.Addr(), leases[1].MAC: leases[1].IPv4.Addr()}
	got := leased(append(dhcpFile(leases), "\n,,\nbroken\n02:00:00:00:00:01,[fd00::1]\n"...))
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}
