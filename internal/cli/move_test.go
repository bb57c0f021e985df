package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"polder/api"
)

func TestSpread(t *testing.T) {
	host := func(name string, free api.Bytes) api.Host {
		return api.Host{Name: name, State: api.HostReady, Role: api.RoleMember, FreeMemoryBytes: free}
	}
	ve := func(name string, memory api.Bytes) api.VE {
		return api.VE{Name: name, State: api.Running, MemoryBytes: memory}
	}
	down, witness := host("h0", api.TiB), host("h9", api.TiB)
	down.State, witness.Role = api.HostUnreachable, api.RoleWitness
	stopped := ve("s", api.TiB)
	stopped.State = api.Stopped
	for name, c := range map[string]struct {
		ves   []api.VE
		hosts []api.Host
		want  map[string]string
	}{
		"nothing":              {nil, nil, map[string]string{}},
		"nowhere to go":        {[]api.VE{ve("a", 1)}, []api.Host{down, witness}, map[string]string{}},
		"the emptiest first":   {[]api.VE{ve("a", 1)}, []api.Host{host("h2", 5), host("h3", 6)}, map[string]string{"a": "h3"}},
		"by name when equal":   {[]api.VE{ve("a", 1)}, []api.Host{host("h3", 5), host("h2", 5)}, map[string]string{"a": "h2"}},
		"the largest first":    {[]api.VE{ve("a", 2), ve("b", 4)}, []api.Host{host("h2", 4), host("h3", 3)}, map[string]string{"b": "h2", "a": "h3"}},
		"one does not fit":     {[]api.VE{ve("a", 2), ve("b", 4)}, []api.Host{host("h2", 4)}, map[string]string{"b": "h2"}},
		"one that needs none":  {[]api.VE{stopped}, []api.Host{host("h2", 0)}, map[string]string{"s": "h2"}},
		"one after the other":  {[]api.VE{ve("a", 2), ve("b", 2), ve("c", 2)}, []api.Host{host("h2", 4), host("h3", 4)}, map[string]string{"a": "h2", "b": "h3", "c": "h2"}},
		"none left for others": {[]api.VE{ve("a", 3), ve("b", 3)}, []api.Host{host("h2", 5)}, map[string]string{"a": "h2"}},
	} {
		if diff := cmp.Diff(c.want, spread(c.ves, c.hosts)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestSpreadOverloadsNobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		amount := rapid.Int64Range(0, 10)
		var hosts []api.Host
		free := map[string]api.Bytes{}
		for _, name := range rapid.SliceOfDistinct(rapid.StringMatching("h[1-9]"), rapid.ID[string]).Draw(t, "hosts") {
			free[name] = api.Bytes(amount.Draw(t, "free"))
			hosts = append(hosts, api.Host{Name: name, State: api.HostReady, FreeMemoryBytes: free[name]})
		}
		var ves []api.VE
		for _, name := range rapid.SliceOfDistinct(rapid.StringMatching("c[1-9]"), rapid.ID[string]).Draw(t, "ves") {
			ves = append(ves, api.VE{Name: name, State: api.Running, MemoryBytes: api.Bytes(amount.Draw(t, "memory"))})
		}
		targets := spread(ves, hosts)
		for _, ve := range ves {
			if to, ok := targets[ve.Name]; ok {
				if free[to] -= ve.MemoryBytes; free[to] < 0 {
					t.Fatalf("too much for %s: %v", to, targets)
				}
			}
		}
		for _, ve := range ves {
			for name, left := range free {
				if targets[ve.Name] == "" && left >= ve.MemoryBytes {
					t.Fatalf("%s would fit on %s: %v", ve.Name, name, targets)
				}
			}
		}
	})
}

func TestRates(t *testing.T) {
	for text, want := range map[string]api.Bytes{
		"50MiB": 50 * api.MiB, "50MiB/s": 50 * api.MiB, "400Mbit": 50_000_000, "1Gbit/s": 125_000_000, "8kbit": 1000, "1 Gbit": 125_000_000, "400Mbitps": 50_000_000, "7": 7,
	} {
		var r rateFlag
		if err := r.Set(text); err != nil || api.Bytes(r) != want {
			t.Errorf("%s: got %d, %v; want %d", text, r, err, want)
		}
	}
	for _, text := range []string{"", "0", "0Mbit", "-1Mbit", "fast", "1e300Gbit", "nanGbit", "Mbit"} {
		var r rateFlag
		if r.Set(text) == nil {
			t.Errorf("%q was read as %d", text, r)
		}
	}
}
