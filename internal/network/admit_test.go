package network

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseChains(t *testing.T) {
	got, err := parseChains([]byte(`{"nftables": [{"metainfo": {"version": "1.1.3", "json_schema_version": 1}},
		{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
		{"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER", "handle": 7}},
		{"chain": {"family": "inet", "table": "mine", "name": "in", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
		{"chain": {"family": "ip", "table": "nat", "name": "POSTROUTING", "handle": 1, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []chain{
		{"ip", "filter", "FORWARD", "forward", "drop"},
		{"ip", "filter", "DOCKER-USER", "", ""},
		{"inet", "mine", "in", "input", "drop"},
		{"ip", "nat", "POSTROUTING", "postrouting", "accept"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	for i, c := range []struct {
		drops bool
		tool  string
	}{{true, "iptables"}, {false, "iptables"}, {true, ""}, {false, ""}} {
		if got[i].dropsVEs() != c.drops || got[i].iptables() != c.tool {
			t.Errorf("%v: drops %v, tool %q", got[i], got[i].dropsVEs(), got[i].iptables())
		}
	}
	if _, err := parseChains([]byte("Error: syntax error")); err == nil {
		t.Error("no error for what is not JSON")
	}
}

func TestAdmission(t *testing.T) {
	golden(t, "admission.iptables", admission("iptables", testConfig(), portDNS, false))
	routed := testConfig()
	routed.NAT = false
	golden(t, "admission-routed.ip6tables", admission("ip6tables", routed, portDNSElse, true))
}
