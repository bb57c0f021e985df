package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// The key is one that WireGuard takes, only this host can read it, and it is the same after a restart.
func TestLinkKey(t *testing.T) {
	o := optionsAt(t, "h1", "")
	if err := os.MkdirAll(clusterDir(o.Data), 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := readLinkKey(o.Data)
	if err != nil {
		t.Fatal(err)
	}
	private, err := wgtypes.ParseKey(key.private)
	if err != nil || private.PublicKey().String() != key.public {
		t.Errorf("for WireGuard the public key is %s, here it is %s, %v", private.PublicKey(), key.public, err)
	}
	path := filepath.Join(clusterDir(o.Data), "link.key")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if again, err := readLinkKey(o.Data); err != nil || again != key {
		t.Errorf("another key after a restart, %v", err)
	}
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readLinkKey(o.Data); err == nil {
		t.Error("a damaged key is taken")
	}
}

// Hosts know each other's public keys by their records; a host alone has none.
func TestHostsShowTheirLinkKeys(t *testing.T) {
	if alone := bring(t, optionsAt(t, "h0", "")); alone.LinkKey() != "" {
		t.Error("a host alone has a key")
	}
	h1 := opened(t)
	h2 := bring(t, joinOptions(t, "h2", h1.token(t).String()))
	list, err := h1.Hosts(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for i, h := range []*testHost{h1, h2} {
		if h.LinkKey() == "" || list[i].LinkKey == "" || list[i].LinkKey == h.LinkKey() {
			t.Errorf("host %s shows %q", h.Name(), list[i].LinkKey)
		}
	}
	if list[0].LinkKey == list[1].LinkKey {
		t.Error("both have one key")
	}
}
