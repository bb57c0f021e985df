package vm

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"

	"polder/internal/model"
)

// diskOf makes a sparse disk file of the blocks: a letter for a block full of it, "." for a hole, "0" for written zeros.
func diskOf(t *testing.T, blocks string, tail int64) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "disk"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	size := int64(len(blocks))*deltaBlock - tail
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for i, c := range []byte(blocks) {
		if c == '.' {
			continue
		}
		if c == '0' {
			c = 0
		}
		at := int64(i) * deltaBlock
		content := bytes.Repeat([]byte{c}, int(min(deltaBlock, size-at)))
		if c != 0 && len(content) > 10 {
			content[3]++ // not all alike
		}
		if _, err := f.WriteAt(content, at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// transfer makes dst what src is, and says how many bytes the source has sent.
func transfer(t *testing.T, src, dst *os.File) int64 {
	t.Helper()
	return transferBy(t, dst, func(s io.ReadWriter) error { return sendDelta(t.Context(), s, src) })
}

func transferBy(t *testing.T, dst *os.File, send func(io.ReadWriter) error) int64 {
	t.Helper()
	a, b := net.Pipe()
	received := make(chan error, 1)
	go func() {
		err := receiveDelta(t.Context(), b, dst)
		if err != nil {
			_ = b.Close()
		}
		received <- err
	}()
	n := &counting{Conn: a}
	sent := send(n)
	if err := <-received; err != nil || sent != nil {
		t.Fatalf("send: %v, receive: %v", sent, err)
	}
	return n.n
}

type counting struct {
	net.Conn
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n += int64(n)
	return n, err
}

func same(t *testing.T, a, b *os.File) bool {
	t.Helper()
	x, err := os.ReadFile(a.Name())
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b.Name())
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

func TestDeltaSendsWhatDiffers(t *testing.T) {
	for name, test := range map[string]struct {
		src, dst string
		tail     int64
		blocks   int64 // that are sent with content
	}{
		"empty":         {"....", "....", 0, 0},
		"alike":         {"ab.c0", "ab.c.", 0, 0},
		"zeros written": {"00.00", ".....", 0, 0},
		"new":           {"abcd", "....", 0, 4},
		"first":         {"xbc", "abc", 0, 1},
		"last, short":   {"abx", "abc", 1000, 1},
		"gone":          {"a..c", "abcc", 0, 0},
		"all gone":      {"....", "abcd", 0, 0},
		"zeros for it":  {"a00c", "abcc", 0, 0},
		"moved":         {".ab.", "ab..", 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := diskOf(t, test.src, test.tail), diskOf(t, test.dst, test.tail)
			n := transfer(t, src, dst)
			if !same(t, src, dst) {
				t.Error("the disks differ")
			}
			if got := n / (deltaBlock - 2000); got != test.blocks {
				t.Errorf("%d bytes were sent, want those of %d blocks", n, test.blocks)
			}
		})
	}
}

func TestKnownChangesAreSentWithoutComparing(t *testing.T) {
	src, dst := diskOf(t, "abx.e00.z", 500), diskOf(t, "abcdef..z", 500)
	changes := []model.Span{ // not on the borders of blocks, and some in one block
		{Start: 2*deltaBlock + 10, End: 2*deltaBlock + 20},
		{Start: 2*deltaBlock + 30, End: 4 * deltaBlock},
		{Start: 5 * deltaBlock, End: 7 * deltaBlock},
		{Start: 9*deltaBlock - 600, End: 20 * deltaBlock},
	}
	n := transferBy(t, dst, func(s io.ReadWriter) error { return sendChanges(t.Context(), s, src, changes) })
	if !same(t, src, dst) {
		t.Error("the disks differ")
	}
	if got := n / (deltaBlock - 2000); got != 2 {
		t.Errorf("%d bytes were sent, want those of 2 blocks: the one that was changed, and the last", n)
	}
}

func TestDeltaOfRandomDisks(t *testing.T) {
	letters := []byte("..0ab")
	random := func() string {
		s := make([]byte, 1+rand.IntN(40))
		for i := range s {
			s[i] = letters[rand.IntN(len(letters))]
		}
		return string(s)
	}
	for range 40 {
		a := random()
		b := (random() + "........................................")[:len(a)]
		src, dst := diskOf(t, a, 5), diskOf(t, b, 5)
		transfer(t, src, dst)
		if !same(t, src, dst) {
			t.Fatalf("%q to %q: the disks differ", a, b)
		}
	}
}

func TestDeltaRefusesAnotherSize(t *testing.T) {
	src, dst := diskOf(t, "abcdef", 0), diskOf(t, "abc", 0)
	a, b := net.Pipe()
	go func() { _ = sendDelta(t.Context(), a, src) }()
	if err := receiveDelta(t.Context(), b, dst); err == nil {
		t.Error("a larger disk was accepted")
	}
	_, _ = a.Close(), b.Close()
}

// What comes from the other host is not trusted to be well formed.
func FuzzApplyBlocks(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 0, 255, 255, 255, 255})
	f.Add([]byte{255, 255, 255, 254, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		dst := diskOf(t, "a.b", 7)
		before, err := dst.Stat()
		if err != nil {
			t.Fatal(err)
		}
		_ = applyBlocks(bytes.NewReader(data), dst, before.Size())
		if after, err := dst.Stat(); err != nil || after.Size() != before.Size() {
			t.Errorf("the disk has become %d bytes long, %v", after.Size(), err)
		}
	})
}
