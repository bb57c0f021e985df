package lab

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"polder/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func open(t *testing.T, dir string) *Lab {
	t.Helper()
	l, err := Open(dir, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOneDirectoryIsOneLab(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	a, b, c := open(t, dir+"/x/y"), open(t, dir+"/link/x/../x/y"), open(t, dir+"/x/z")
	if a.dir != b.dir || a.id != b.id {
		t.Errorf("%s (%s) and %s (%s) are the same directory", a.dir, a.id, b.dir, b.id)
	}
	if a.id == c.id || a.uplink() == c.uplink() {
		t.Errorf("%s and %s are both %s", a.dir, c.dir, a.id)
	}
	if len(a.uplink()) > 15 {
		t.Errorf("%q is too long for a link", a.uplink())
	}
}

func TestDirectoryThatCannotHoldALab(t *testing.T) {
	for _, dir := range []string{"/" + strings.Repeat("x", 100), "/a:b", "/a,b", "/a\\b", "/a\nb"} {
		if _, err := Open(dir, ""); api.KindOf(err) != api.Invalid {
			t.Errorf("%q: got %v", dir, err)
		}
	}
	longest, err := Open("/"+strings.Repeat("x", maxDir-1), "")
	if err != nil || len(longest.socket(MaxHosts)) >= 108 {
		t.Errorf("the longest socket has %d bytes, %v", len(longest.socket(MaxHosts)), err)
	}
}

// Down removes the lab's directory, so it must not be taken for a lab when it is not.
func TestDirectoryOfSomethingElse(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir)
	if _, err := l.lock(); api.KindOf(err) != api.Precondition {
		t.Errorf("lock: %v", err)
	}
	if _, err := l.List(); api.KindOf(err) != api.Precondition {
		t.Errorf("list: %v", err)
	}
}

func TestLockExcludes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	a, b := open(t, dir), open(t, dir)
	unlock, err := a.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.lock(); api.KindOf(err) != api.Conflict {
		t.Errorf("second lock: %v", err)
	}
	// The holder removes the lab: whoever comes then gets a new one.
	if err := a.removeFiles(); err != nil {
		t.Fatal(err)
	}
	unlockB, err := b.lock()
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := a.lock(); api.KindOf(err) != api.Conflict {
		t.Errorf("lock of the new directory: %v", err)
	}
	unlockB()
}

func TestHostNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"h10", "h2", "h1", "shared"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, dir)
	got, err := l.hostNumbers()
	if err != nil || !slices.Equal(got, []int{1, 2, 10}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, name := range []string{"h3", "h0", "h01", "shared", "", "../h1", "h100"} {
		if _, err := l.number(name); api.KindOf(err) != api.NotFound {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestUpOptions(t *testing.T) {
	for _, o := range []UpOptions{{Hosts: -1}, {Hosts: MaxHosts + 1}, {PoolSize: api.MiB}, {PoolSize: -1}} {
		if _, err := o.withDefaults(); api.KindOf(err) != api.Invalid {
			t.Errorf("%+v: got %v", o, err)
		}
	}
	if o, err := (UpOptions{}).withDefaults(); err != nil || o.Hosts != 1 || o.PoolSize != DefaultPoolSize {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestRecordOfANewerVersion(t *testing.T) {
	l := open(t, t.TempDir())
	if err := l.writeRecord(&record{Version: recordVersion + 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.readRecord(); api.KindOf(err) != api.Unsupported {
		t.Errorf("got %v", err)
	}
}

func TestSubnetAvoidsWhatIsInUse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[0-9a-f]{8}`).Draw(t, "id")
		used := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(200, 239).Draw(t, "b")), byte(rapid.IntRange(0, 255).Draw(t, "c")), 0})
			return netip.PrefixFrom(a, rapid.IntRange(14, 32).Draw(t, "bits")).Masked()
		}), 0, 30).Draw(t, "used")
		got, ok := chooseSubnet(id, append(used, netip.MustParsePrefix("0.0.0.0/0")))
		if !ok {
			return // all in use
		}
		for _, u := range used {
			if u.Overlaps(got) {
				t.Fatalf("%s overlaps %s", got, u)
			}
		}
	})
	if _, ok := chooseSubnet("01234567", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); ok {
		t.Error("found a subnet in a network that is in use as a whole")
	}
}

func TestAddresses(t *testing.T) {
	r := &record{Subnet: netip.MustParsePrefix("10.201.7.0/24"), Subnet6: netip.MustParsePrefix("fd70:1:2::/64")}
	seen := map[netip.Prefix]bool{}
	for n := range MaxHosts + 1 {
		v4, v6 := r.address(n)
		if !r.Subnet.Contains(v4.Addr()) || !r.Subnet6.Contains(v6.Addr()) || seen[v4] || seen[v6] {
			t.Errorf("host %d has %s and %s", n, v4, v6)
		}
		seen[v4], seen[v6] = true, true
	}
}

func TestRules(t *testing.T) {
	l := &Lab{id: "0123abcd"}
	r := &record{Subnet: netip.MustParsePrefix("10.201.7.0/24")}
	o := outside{
		mirrors: map[string][]netip.Addr{
			"deb.debian.org":      {netip.MustParseAddr("151.101.2.132"), netip.MustParseAddr("151.101.66.132")},
			"security.debian.org": {netip.MustParseAddr("151.101.2.132")},
		},
		ports:     []string{"3142", "443", "80"},
		resolvers: []netip.Addr{netip.MustParseAddr("9.9.9.9")},
	}
	got := l.rules(r, o)
	golden := filepath.Join("testdata", "rules.nft")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
}

func TestCgroupMount(t *testing.T) {
	const hybrid = `22 1 0:20 / /proc rw - proc proc rw
30 24 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
32 24 0:27 /sub /mnt rw - cgroup2 cgroup2 rw
`
	const spaces = "31 24 0:27 / /my\\040cgroups rw - cgroup2 none rw\n"
	for text, want := range map[string]string{hybrid: "/sys/fs/cgroup/unified", spaces: "/my cgroups"} {
		if got, err := cgroupMount(strings.NewReader(text)); got != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if _, err := cgroupMount(strings.NewReader("22 1 0:20 / /proc rw - proc proc rw\n")); api.KindOf(err) != api.Unsupported {
		t.Errorf("a machine without cgroup2: %v", err)
	}
}

func TestSourceURLs(t *testing.T) {
	const text = `# deb http://comment.example/debian trixie main
deb [signed-by=/usr/share/keyrings/k.gpg] http://one.example/debian trixie main # http://no.example
deb-src https://two.example:8080/debian trixie main
deb cdrom:[Debian] trixie main
Types: deb
URIs: http://three.example/debian-security
 http://four.example/debian
Suites: trixie
 http://not-a-mirror.example
`
	want := []string{
		"http://one.example/debian", "https://two.example:8080/debian",
		"http://three.example/debian-security", "http://four.example/debian",
	}
	got := sourceURLs(text)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if m := debianSource(got); m != "http://one.example/debian" {
		t.Errorf("mirror %q", m)
	}
	if m := debianSource(nil); m != "http://deb.debian.org/debian" {
		t.Errorf("mirror of a machine without sources: %q", m)
	}
}

func FuzzSourceURLs(f *testing.F) {
	f.Add("deb http://one.example/debian trixie main\nURIs: http://x\n y")
	f.Fuzz(func(t *testing.T, text string) {
		for _, u := range sourceURLs(text) {
			if !strings.HasPrefix(u, "http") || !strings.Contains(text, u) {
				t.Errorf("%q out of %q", u, text)
			}
		}
	})
}

func TestNameservers(t *testing.T) {
	got := nameservers("# c\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver 2620:fe::fe\noptions edns0\nnameserver\nnameserver x\n")
	if d := cmp.Diff([]string{"9.9.9.9"}, texts(got)); d != "" {
		t.Error(d)
	}
}

func texts(addrs []netip.Addr) (list []string) {
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return list
}

func TestProgramIsCopiedOnce(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "lab"))
	for i, want := range []bool{false, false} {
		if changed, err := l.copyBinary(); changed != want || err != nil {
			t.Errorf("copy %d: %v, %v", i, changed, err)
		}
	}
	if err := os.WriteFile(l.binary(), []byte("an older one"), 0o755); err != nil {
		t.Fatal(err)
	}
	if changed, err := l.copyBinary(); !changed || err != nil {
		t.Errorf("over an older one: %v, %v", changed, err)
	}
}

func TestLinesOfMmdebstrap(t *testing.T) {
	var got []string
	w := &infoLines{report: func(_ string, args ...any) { got = append(got, args[0].(string)) }}
	for _, part := range []string{"I: run", "ning apt\nW: warning\n", "I: done\nI: rest"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if d := cmp.Diff([]string{"running apt", "done"}, got); d != "" {
		t.Error(d)
	}
}

// Only the first process of a host may become one.
func TestInnerCommandsRefuseOutside(t *testing.T) {
	for name, f := range map[string]func() error{"enter": Enter, "init": Init} {
		if err := f(); api.KindOf(err) != api.Invalid || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
