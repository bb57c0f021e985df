package image

import (
	"bytes"
	"strings"
	"testing"

	"polder/api"
)

func TestParseSuite(t *testing.T) {
	for source, want := range map[string]string{
		"debian/13": "trixie", "debian/trixie": "trixie", "debian/sid": "sid", "ubuntu/24.04": "noble", "ubuntu/jammy": "jammy",
	} {
		if s, err := parseSuite(source); err != nil || s.Code != want {
			t.Errorf("%s: %+v, %v", source, s, err)
		}
	}
	for _, source := range []string{"", "debian", "debian/", "debian/99", "Debian/13", "arch/now", "debian/13/x"} {
		if s, err := parseSuite(source); api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), "debian/13") {
			t.Errorf("%s: %+v, %v", source, s, err)
		}
	}
}

func TestBootstrapChecksPackages(t *testing.T) {
	s, err := parseSuite("debian/13")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"-o", "a b", "vim,nano", "x;y", "", "$(x)"} {
		if err := (bootstrap{suite: s, packages: []string{name}}).check(); api.KindOf(err) != api.Invalid {
			t.Errorf("package %q: %v", name, err)
		}
	}
	if err := (bootstrap{suite: s, mirror: "http://m/debian main] x"}).check(); api.KindOf(err) != api.Invalid {
		t.Errorf("mirror: %v", err)
	}
}

func TestBootstrapProgress(t *testing.T) {
	var done, total int64
	p := &bootstrapProgress{report: func(d, n int64) { done, total = d, n }}
	text := "I: x\n0 upgraded, 2 newly installed, 0 to remove\nUnpacking a (1) ...\nUnpacking b (1) ...\nSetting up a (1) ...\n"
	for _, part := range []string{text[:30], text[30:]} {
		if n, err := p.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if done != 3 || total != 4 {
		t.Errorf("%d of %d", done, total)
	}
}

func TestReleaseDate(t *testing.T) {
	at, err := releaseDate(strings.NewReader("-----BEGIN PGP SIGNED MESSAGE-----\nSuite: stable\nDate: Sat, 12 Sep 2026 09:57:42 UTC\n"))
	if err != nil || at.Unix() != 1789207062 {
		t.Errorf("%v (%d), %v", at, at.Unix(), err)
	}
	if _, err := releaseDate(strings.NewReader("<html>")); api.KindOf(err) != api.Unavailable {
		t.Error(err)
	}
}

func TestCompareVersions(t *testing.T) {
	ordered := []string{"", "5.10.0-9-amd64", "5.10.0-28-amd64", "6.1.0-1-amd64", "6.12.117+deb13-cloud-amd64", "6.12.118+deb13-cloud-amd64", "10.0"}
	for i := range ordered[1:] {
		if compareVersions(ordered[i], ordered[i+1]) >= 0 || compareVersions(ordered[i+1], ordered[i]) <= 0 {
			t.Errorf("%q < %q is not so", ordered[i], ordered[i+1])
		}
	}
}

func TestEmbedGrub(t *testing.T) {
	boot, core, mbr := bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 1300), bytes.Repeat([]byte{3}, 512)
	if err := embedGrub(boot, core, mbr, 2048, 1<<20); err != nil {
		t.Fatal(err)
	}
	if got := mbr[0x5c:0x64]; !bytes.Equal(got, []byte{0, 8, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("kernel sector %v", got)
	}
	if mbr[0x1b7] != 1 || mbr[0x1b8] != 3 {
		t.Error("the partition table was touched, or the code was cut")
	}
	if got := core[0x1f4:0x200]; !bytes.Equal(got, []byte{1, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 8}) {
		t.Errorf("block list %v", got)
	}
	if err := embedGrub(boot, make([]byte, 2<<20), mbr, 2048, 1<<20); err == nil {
		t.Error("a core that does not fit is taken")
	}
}
