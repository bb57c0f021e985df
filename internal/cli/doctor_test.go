package cli

import (
	"bytes"
	"strings"
	"testing"

	"polder/api"
)

func TestDiagnosis(t *testing.T) {
	found := []api.Capability{
		{Name: "kvm", Level: api.Limited, Detail: "no vmx", Remedy: "turn it on"},
		{Name: "crun", Level: api.OK, Detail: "1.21, runs containers"},
		{Name: "nftables", Level: api.Missing, Detail: "not\ninstalled", Remedy: "apt-get install nftables"},
	}
	var out bytes.Buffer
	writeDiagnosis(&out, found, false)
	want := `limited  kvm       no vmx
                   → turn it on
ok       crun      1.21, runs containers
missing  nftables  not?installed
                   → apt-get install nftables

1 ok, 1 limited, 1 missing
for all that is only not installed: apt-get install nftables
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	writeDiagnosis(&out, found, true)
	for _, painted := range []string{"\x1b[33mlimited\x1b[0m", "\x1b[32mok     \x1b[0m", "\x1b[31mmissing\x1b[0m"} {
		if !strings.Contains(out.String(), painted) {
			t.Errorf("no %q in %q", painted, out.String())
		}
	}
}

func TestVerdict(t *testing.T) {
	if err := verdict([]api.Capability{{Name: "criu", Level: api.Missing}, {Name: "cgroup2", Level: api.Limited}}); err != nil {
		t.Errorf("not essential, but %v", err)
	}
	err := verdict([]api.Capability{{Name: "crun", Level: api.Missing}, {Name: "nftables", Level: api.Missing}})
	if err == nil || api.KindOf(err).ExitCode() != 1 || !strings.Contains(err.Error(), "crun, nftables") {
		t.Errorf("got %v", err)
	}
}
