//go:build integration

package network

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/api"
)

// encrypt gives all hosts keys.
func (hs *hosts) encrypt() {
	hs.Helper()
	public := map[netip.Addr]string{}
	for _, h := range hs.all {
		key, pub := newKey(hs.T)
		h.under.Crypt = &Crypt{Key: key, Peers: map[netip.Addr]string{}}
		public[h.under.Self] = pub
	}
	for _, h := range hs.all {
		for addr, pub := range public {
			if addr != h.under.Self {
				h.under.Crypt.Peers[addr] = pub
			}
		}
	}
}

// A kernel with WireGuard encrypts all that hosts send each other; one without sends nothing.
func TestEncrypted(t *testing.T) {
	hs := newHosts(t, 2, false)
	a := hs.all[0].container("a")
	hs.all[1].container("b")
	hs.join()
	device := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "try"}}
	err := netlink.LinkAdd(device)
	if errors.Is(err, unix.EOPNOTSUPP) {
		hs.encrypt()
		hs.refuseEncryption()
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(device); err != nil {
		t.Fatal(err)
	}
	b := hs.of["b"]
	ping := func(want bool) {
		t.Helper()
		_, err := a.exec("ping", "-c5", "-i0.05", "-W2", "-M", "do", "-s", "1322", b.IPv4.Addr().String())
		if (err == nil) != want {
			t.Fatalf("reached: %v, want %v", err == nil, want)
		}
	}
	ping(true)
	hs.encrypt()
	hs.all[0].join()
	ping(false) // one that encrypts does not listen to one that doesn't
	hs.all[1].join()
	eventually(t, "hosts shake hands", func() bool {
		_, err := a.exec("ping", "-c1", "-W1", b.IPv4.Addr().String())
		return err == nil
	})
	ping(true)
	hs.all[0].restart()
	before := hs.all[0].overlayState()
	hs.join()
	if after := hs.all[0].overlayState(); after != before {
		t.Errorf("got %s\nwant %s", after, before)
	}
	ping(true)
	sent := hs.all[0].run("sh", "-c", "ip -s link show polder0-w | awk '/TX:/{getline; print $2}'")
	if sent == "0\n" {
		t.Error("nothing was sent encrypted")
	}
	for _, h := range hs.all {
		h.under.Crypt = nil
	}
	hs.join()
	ping(true)
	if out := hs.all[0].run("sh", "-c", "ip link show type wireguard; nft list tables | grep crypt || true"); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

func (hs *hosts) refuseEncryption() {
	hs.Helper()
	h := hs.all[0]
	h.do(func() {
		if err := h.fabric.SetOverlay(hs.Context(), hs.cfg, h.under, h.remotes()); api.KindOf(err) != api.Unsupported {
			hs.Errorf("got %v, want that it is not supported", err)
		}
	})
	if out := h.run("ip", "link", "show", "type", "vxlan"); out != "" {
		hs.Errorf("sent in the clear: %s", out)
	}
}
