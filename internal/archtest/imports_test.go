package archtest

import (
	"slices"
	"strings"
	"testing"
)

// layers from the top down. A package imports only packages of layers further down.
var layers = []struct {
	reason   string
	packages []string
}{
	{"scenarios and measurements use Polder as its users do", []string{"test", "bench", "bench/services"}},
	{"main only calls the command line", []string{"cmd/polder"}},
	{"the command line shows what the API says; what it decided itself, no other client could do", []string{"internal/cli"}},
	{"the daemon puts the parts together at one place, and the lab runs the finished program", []string{"internal/daemon", "internal/lab"}},
	{"the server decodes, calls and encodes; it reaches the host through its own Backend interface", []string{"internal/server"}},
	{"the host is the one that knows models, storage, network and store together", []string{"internal/host"}},
	{"how two hosts exchange a VE is no business of a record or of an operation", []string{"internal/migrate"}},
	{"images are made before and without any VE", []string{"internal/image"}},
	{"who belongs to the cluster does not depend on what its hosts run", []string{"internal/cluster"}},
	{"models, pool drivers and networks are exchangeable because none knows another", []string{
		"internal/model/container", "internal/model/vm", "internal/storage/btrfs", "internal/storage/dir", "internal/network", "internal/hardware",
	}},
	{"what drivers share, and the suites that they must pass", []string{
		"internal/model/modeltest", "internal/storage/pooldir", "internal/storage/storagetest",
	}},
	{"the contracts, which know no implementation", []string{"internal/model", "internal/storage"}},
	{"operations are a mechanism: which ones there are is their users' business", []string{"internal/operation"}},
	{"the store keeps records and does not know what is in them", []string{"internal/store"}},
	{"clients of tools speak a protocol and have no policy", []string{"internal/qmp", "internal/crun", "internal/criu"}},
	{"whoever runs a tool reports its failure alike", []string{"internal/command"}},
	{"other people's programs import the client: it brings nothing of the daemon along", []string{"client"}},
	{"the wire types are for everybody", []string{"api"}},
}

// never are imports that the layers alone would allow.
var never = []struct{ from, to, reason string }{
	{"internal/model", "internal/store", "a model is told all that it must know; what it finds, it finds on the host"},
	{"internal/model", "internal/operation", "a model's methods are idempotent; steps and undo are its caller's"},
	{"internal/storage", "internal/store", "what a pool holds is read from the pool, so that a lost store loses no data"},
	{"internal/storage", "internal/operation", "a pool's methods are idempotent; steps and undo are their caller's"},
	{"internal/storage", "internal/model", "storage knows nothing of VEs"},
	{"internal/network", "internal/operation", "a network's methods are idempotent; steps and undo are their caller's"},
	{"internal/cluster", "internal/model", "a cluster is told about its hosts; it does not look into them"},
	{"internal/cluster", "internal/storage", "a cluster is told about its hosts; it does not look into them"},
	{"internal/cluster", "internal/network", "a cluster is told about its hosts; it does not look into them"},
	{"internal/hardware", "internal/store", "doctor works where there is no store"},
	{"internal/hardware", "internal/model", "doctor works before anything else does"},
	{"internal/store", "internal/command", "the store is in this process"},
	{"internal/server", "internal/store", "a route that reads records itself would bypass the host's locks"},
	{"internal/lab", "internal/host", "a lab's hosts are whole daemons, reached as by anyone"},
	{"test", "internal", "a scenario that looks inside does not show that the outside works"},
}

// layerOf is a package's place in layers; -1: none. A suite in a directory of its own belongs to the package above it.
func layerOf(pkg string) int {
	if up, _, ok := cutLast(pkg); ok && strings.HasSuffix(pkg, "test") && rank(pkg) < 0 {
		return rank(up)
	}
	return rank(pkg)
}

func rank(pkg string) int {
	return slices.IndexFunc(layers, func(l struct {
		reason   string
		packages []string
	},
	) bool {
		return slices.Contains(l.packages, pkg)
	})
}

func cutLast(pkg string) (up, name string, ok bool) {
	i := strings.LastIndexByte(pkg, '/')
	if i < 0 {
		return "", pkg, false
	}
	return pkg[:i], pkg[i+1:], true
}

func importsLookDown(t *testing.T, source []file) {
	for _, f := range source {
		if f.test || f.pkg == "internal/archtest" {
			continue
		}
		from := layerOf(f.pkg)
		if from < 0 {
			t.Errorf("%s: package %s has no place in the layers: give it one in internal/archtest", f.path, f.pkg)
			continue
		}
		ours, _ := f.imports()
		for _, to := range ours {
			suite := strings.HasPrefix(f.pkg, to+"/") && strings.HasSuffix(f.pkg, "test")
			if layerOf(to) <= from && !suite {
				t.Errorf("%s imports %s: %s", f.path, to, layers[from].reason)
			}
		}
	}
}

func forbiddenImports(t *testing.T, source []file) {
	below := func(pkg, top string) bool { return pkg == top || strings.HasPrefix(pkg, top+"/") }
	for _, f := range source {
		ours, _ := f.imports()
		for _, rule := range never {
			if f.test && rule.from != "test" || !below(f.pkg, rule.from) {
				continue
			}
			for _, to := range ours {
				if below(to, rule.to) {
					t.Errorf("%s imports %s: %s", f.path, to, rule.reason)
				}
			}
		}
	}
}

func suitesAreForTests(t *testing.T, source []file) {
	for _, f := range source {
		ours, _ := f.imports()
		for _, to := range ours {
			_, name, _ := cutLast(to)
			from, _, _ := cutLast(f.pkg)
			if strings.HasSuffix(name, "test") && !f.test && !strings.HasSuffix(f.pkg, "test") && from != to {
				t.Errorf("%s imports %s: testing code must not get into the program", f.path, to)
			}
		}
	}
}

func apiImportsTheStandardLibraryOnly(t *testing.T, source []file) {
	for _, f := range source {
		if f.pkg != "api" || f.test {
			continue
		}
		_, others := f.imports()
		for _, path := range others {
			if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") {
				t.Errorf("%s imports %s: whoever imports the wire types should get nothing else with them", f.path, path)
			}
		}
	}
}

// starters may start processes by themselves, because these outlive the call or need what package command has not.
var starters = map[string]string{
	"internal/command":  "it is the one for all others",
	"internal/model/vm": "QEMU outlives the call",
	"internal/crun":     "a container outlives the call, and a command in it has streams",
	"internal/criu":     "a dump that is cut off in the middle harms what it dumps",
	"internal/hardware": "a process is made in a user namespace",
	"internal/lab":      "a host's daemon outlives the call",
	"bench":             "a QEMU started by hand inherits descriptors",
}

func toolsAreRunByPackageCommand(t *testing.T, source []file) {
	for _, f := range source {
		_, others := f.imports()
		suite := strings.HasSuffix(f.pkg, "test")
		if slices.Contains(others, "os/exec") && !f.test && !suite && starters[f.pkg] == "" {
			t.Errorf("%s imports os/exec: a failure must carry argv, exit code and the end of standard error, as internal/command's do", f.path)
		}
	}
}
