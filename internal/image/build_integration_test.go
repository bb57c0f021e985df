//go:build integration

package image

import (
	"os"
	"testing"
	"time"
)

// TestProto is for experiments.
func TestProto(t *testing.T) {
	work := "/pool/proto"
	if os.Getenv("KEEP") == "" {
		os.RemoveAll(work)
	}
	os.Remove("/pool/proto/disk.raw")
	os.MkdirAll(work, 0o700)
	s, _ := parseSuite("debian/13")
	b := bootstrap{suite: s, work: work, cache: "/var/cache/polder-test"}
	start := time.Now()
	lap := func(name string) { t.Log(name, time.Since(start)); start = time.Now() }
	if err := b.check(); err != nil {
		t.Fatal(err)
	}
	epoch, err := b.release(t.Context())
	lap("release")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("KEEP") == "" {
		if err := b.run(t.Context(), epoch); err != nil {
			t.Fatal(err)
		}
	}
	lap("mmdebstrap")
	sys, err := inspect(b.root())
	t.Logf("%+v %v", sys, err)
	if err := deriveDisk(t.Context(), b.root(), "/pool/proto/disk.raw", work, 300<<20); err != nil {
		t.Fatal(err)
	}
	lap("disk")
}
