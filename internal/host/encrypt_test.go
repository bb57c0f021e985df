package host

import (
	"strings"
	"testing"

	"polder/api"
	"polder/internal/cluster"
)

func TestEncryptionIsRefusedWhileAHostCannot(t *testing.T) {
	can := []api.Capability{{Name: "vxlan", Level: api.OK}, {Name: "wireguard", Level: api.OK}}
	cannot := []api.Capability{{Name: "wireguard", Level: api.Limited, Detail: "no such link", Remedy: "modprobe wireguard"}}
	host := func(name, address, key string, able []api.Capability) cluster.Status {
		return cluster.Status{Host: cluster.Host{Name: name, Address: address, LinkKey: key, Capabilities: able, Version: "v0"}}
	}
	for name, c := range map[string]struct {
		hosts []cluster.Status
		says  []string // of the refusal; nil: there is none
	}{
		"alone":         {[]cluster.Status{host("h1", "", "", can)}, nil},
		"alone without": {[]cluster.Status{host("h1", "", "", cannot)}, []string{`"h1"`, "modprobe wireguard"}},
		"two":           {[]cluster.Status{host("h1", "a", "k", can), host("h2", "b", "k", can)}, nil},
		"one can't":     {[]cluster.Status{host("h1", "a", "k", can), host("h2", "b", "k", cannot)}, []string{`"h2"`, "no such link", "modprobe wireguard"}},
		"older":         {[]cluster.Status{host("h1", "a", "k", can), host("h2", "b", "", can)}, []string{`"h2"`, "v0"}},
		"much older":    {[]cluster.Status{host("h1", "a", "k", can), host("h2", "b", "", nil)}, []string{`"h2"`, "v0"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := allEncrypt(c.hosts)
			if (err != nil) != (c.says != nil) || err != nil && api.KindOf(err) != api.Precondition {
				t.Fatalf("got %v", err)
			}
			for _, text := range c.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q is missing in: %v", text, err)
				}
			}
		})
	}
}
