// Package lab makes a cluster on one machine: every host has its own mount, pid, uts, ipc, network and cgroup namespaces
// and a Debian 13 root, and runs a `polder serve` of its own. The hosts are joined by a switch: a bridge in a network
// namespace that belongs to the lab.
//
// It owns what it makes on the machine, and finds all of it again without trusting a record of a process: everything is
// named after the lab's directory (cgroup, link, nft table), lies in it (files, the switch's namespace) or dies with the
// hosts' processes (mounts, namespaces, loop devices). So Down works after a kill -9 of anything at any moment, and Up
// carries on from whatever it finds. It does not know VEs, images or the store: a lab host is a host like any other.
//
// Hosts are independent of the process that started them. Commands that change a lab exclude each other by a lock on a
// file in its directory (api.Conflict); List and Exec take no lock. A Lab has no mutable state and is safe for
// concurrent use.
package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"polder/api"
)

const (
	// DefaultDir holds the lab when POLDER_LAB names no other directory.
	DefaultDir = "/var/lib/polder-lab"
	// DefaultCache holds what is built once for all labs when POLDER_CACHE names no other directory.
	DefaultCache = "/var/cache/polder"
	// MaxHosts is how many hosts fit in a lab's network.
	MaxHosts = 99

	// maxDir keeps the path of every host's socket below the 108 bytes of sockaddr_un.
	maxDir = 107 - len("/h99/run/polder.sock")
)

// Lab is one lab: what belongs to one directory. It need not be up.
type Lab struct {
	dir    string
	cache  string
	id     string   // of eight hex digits: names what can't lie in the directory
	daemon []string // what PID 1 of a host keeps running
	root   string   // the root file system below every host's; "": the cached one, built when missing
}

// Open names the lab in dir ("": DefaultDir) with its cache ("": DefaultCache). It changes nothing.
func Open(dir, cache string) (*Lab, error) {
	dir, err := absolute(dir, DefaultDir)
	if err != nil {
		return nil, err
	}
	cache, err = absolute(cache, DefaultCache)
	if err != nil {
		return nil, err
	}
	if len(dir) > maxDir {
		return nil, api.Errorf(api.Invalid, "lab directory %q: longer than %d bytes, the hosts' sockets would not fit; set POLDER_LAB to a shorter one", dir, maxDir)
	}
	if strings.ContainsAny(dir, ":,\\\n") {
		return nil, api.Errorf(api.Invalid, "lab directory %q: overlay mounts don't take colons, commas and backslashes", dir)
	}
	sum := sha256.Sum256([]byte(dir))
	return &Lab{
		dir:    dir,
		cache:  cache,
		id:     hex.EncodeToString(sum[:4]),
		daemon: []string{"polder", "serve", "--data", "/var/lib/polder"},
	}, nil
}

// OpenOn is Open for a lab whose hosts' root is a copy-on-write child of an existing one, which has all that a host takes.
// It is for tests that run on a lab host: that one's own root will do.
func OpenOn(root, dir, cache string) (*Lab, error) {
	l, err := Open(dir, cache)
	if err == nil {
		l.root = root
	}
	return l, err
}

// absolute resolves the links in path, as far as it exists: the same directory is the same lab, however it is named.
func absolute(path, fallback string) (string, error) {
	if path == "" {
		path = fallback
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", api.Errorf(api.Internal, "find directory %q: %w", path, err)
	}
	rest := ""
	for at := path; ; at = filepath.Dir(at) {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			return filepath.Join(real, rest), nil
		}
		rest = filepath.Join(filepath.Base(at), rest)
	}
}

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// ID is what the lab's name in the kernel's tables ends in: cgroup, link, rules.
func (l *Lab) ID() string { return l.id }

// Shared is the directory that every host has at /shared.
func (l *Lab) Shared() string { return filepath.Join(l.dir, "shared") }

// Cache is the directory of what is built once for all labs.
func (l *Lab) Cache() string { return l.cache }

func (l *Lab) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

var hostName = regexp.MustCompile(`^h[1-9][0-9]?$`)

// known are the entries of a lab's directory besides the hosts'.
var known = []string{lockFile, recordFile, recordFile + ".new", "switch.net", "hosts", "bin", "shared"}

// check refuses a directory that something else lies in: Down removes all of it.
func (l *Lab) check() error {
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return api.Errorf(api.Internal, "open lab: %w", err)
	}
	for _, e := range entries {
		if !slices.Contains(known, e.Name()) && !hostName.MatchString(e.Name()) {
			return api.Errorf(api.Precondition, "open lab: %s is no part of a lab; set POLDER_LAB to a directory of its own", l.path(e.Name()))
		}
	}
	return nil
}

// hostNumbers finds the lab's hosts, in order, by their directories.
func (l *Lab) hostNumbers() ([]int, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.Internal, "list lab hosts: %w", err)
	}
	var list []int
	for _, e := range entries {
		if hostName.MatchString(e.Name()) {
			n, _ := strconv.Atoi(e.Name()[1:])
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}

// number reads the name of a host that is part of the lab.
func (l *Lab) number(name string) (int, error) {
	if hostName.MatchString(name) {
		if _, err := os.Stat(l.path(name)); err == nil {
			n, _ := strconv.Atoi(name[1:])
			return n, nil
		}
	}
	return 0, api.Errorf(api.NotFound, "lab host %q not found; see: polder lab list", name)
}

func nameOf(n int) string { return "h" + strconv.Itoa(n) }

const lockFile = "lock"

// patience is how long a lock may stay held: a process that is killed while it starts another one leaves it to that
// one for some milliseconds.
const patience = 300 * time.Millisecond

// lock excludes every other command that changes the lab, in this process or another. It makes the lab's directory.
func (l *Lab) lock() (unlock func(), err error) {
	for start := time.Now(); ; {
		f, err := l.tryLock()
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case errors.Is(err, errGone):
		case api.KindOf(err) != api.Conflict || time.Since(start) > patience:
			return nil, err
		default:
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// errGone says that Down removed the lab's directory under our hands.
var errGone = errors.New("the lab was removed just now")

func (l *Lab) tryLock() (*os.File, error) {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, api.Errorf(api.Internal, "lock lab: %w", err)
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(l.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errGone
	}
	if err != nil {
		return nil, api.Errorf(api.Internal, "lock lab: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, api.Errorf(api.Conflict, "lock lab: another command is changing the lab in %s; try again when it has ended", l.dir)
		}
		return nil, api.Errorf(api.Internal, "lock lab: %w", err)
	}
	// What was locked may have been removed between the open and the lock.
	mine, err1 := f.Stat()
	there, err2 := os.Stat(f.Name())
	if err1 != nil || err2 != nil || !os.SameFile(mine, there) {
		f.Close()
		return nil, errGone
	}
	return f, nil
}

// address is a host's, or (number 0) the gateway's.
func (r *record) address(n int) (v4, v6 netip.Prefix) {
	last := byte(1)
	if n > 0 {
		last = byte(100 + n)
	}
	a4 := r.Subnet.Masked().Addr().As4()
	a4[3] = last
	a6 := r.Subnet6.Masked().Addr().As16()
	a6[15] = last
	return netip.PrefixFrom(netip.AddrFrom4(a4), r.Subnet.Bits()), netip.PrefixFrom(netip.AddrFrom16(a6), r.Subnet6.Bits())
}
