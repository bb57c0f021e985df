package pooldir

import (
	"bufio"
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"polder/internal/storage"
)

func fileWith(t testing.TB, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return f
}

// A file that changed at random is at the other end what it is here, and little was sent for little.
func TestBlocksMakeTheSameFile(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 1<<20)
	here, there := fileWith(t, nil), fileWith(t, nil)
	var sums []BlockSum
	for range 30 {
		switch r.IntN(4) {
		case 0:
			content = content[:r.IntN(len(content))+1]
		case 1:
			content = append(content, make([]byte, r.IntN(300000))...)
		default:
			at := r.IntN(len(content))
			for i := at; i < min(at+5000, len(content)); i++ {
				content[i] = byte(r.Uint32())
			}
		}
		if err := here.Truncate(0); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(content); at += 4096 { // with holes
			if page := content[at:min(at+4096, len(content))]; !AllZero(page) {
				if _, err := here.WriteAt(page, int64(at)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := here.Truncate(int64(len(content))); err != nil {
			t.Fatal(err)
		}
		var stream bytes.Buffer
		out := bufio.NewWriter(&stream)
		var err error
		if sums, err = WriteBlocks(t.Context(), out, here, int64(len(content)), sums); err != nil {
			t.Fatal(err)
		}
		out.Flush()
		if stream.Len() > 6*blockSize {
			t.Errorf("%d bytes were sent", stream.Len())
		}
		if err := ReadBlocks(t.Context(), bufio.NewReader(&stream), there, int64(len(content))); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(there.Name()); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("the files differ: %v", err)
		}
	}
}

func FuzzReadBlocks(f *testing.F) {
	f.Add([]byte("d\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02xxe"), uint16(100))
	f.Add([]byte("z\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02e"), uint16(100))
	f.Add([]byte("d\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), uint16(0))
	f.Fuzz(func(t *testing.T, stream []byte, size uint16) {
		file := fileWith(t, nil)
		_ = ReadBlocks(t.Context(), bufio.NewReader(bytes.NewReader(stream)), file, int64(size))
		if info, err := file.Stat(); err != nil || info.Size() != int64(size) {
			t.Errorf("%d bytes, not %d, %v", info.Size(), size, err)
		}
	})
}

// changed finds, for each position, what comparing the two maps there finds.
func TestChanged(t *testing.T) {
	pieces := rapid.Custom(func(t *rapid.T) []piece {
		var list []piece
		for pos := int64(0); pos < 40; {
			pos += rapid.Int64Range(0, 5).Draw(t, "gap")
			end := pos + rapid.Int64Range(1, 9).Draw(t, "length")
			list = append(list, piece{span: span{pos, end}, shift: rapid.Int64Range(0, 2).Draw(t, "shift"), opaque: rapid.IntRange(0, 9).Draw(t, "opaque") == 0})
			pos = end
		}
		return list
	})
	at := func(list []piece, pos int64) *piece {
		i := slices.IndexFunc(list, func(p piece) bool { return p.start <= pos && pos < p.end })
		if i < 0 {
			return nil
		}
		return &list[i]
	}
	in := func(list []span, pos int64) bool {
		return slices.ContainsFunc(list, func(s span) bool { return s.start <= pos && pos < s.end })
	}
	rapid.Check(t, func(t *rapid.T) {
		before, now := pieces.Draw(t, "before"), pieces.Draw(t, "now")
		data, zeros := changed(before, now, 50)
		for pos := range int64(50) {
			old, cur := at(before, pos), at(now, pos)
			same := old != nil && cur != nil && !old.opaque && !cur.opaque && old.shift == cur.shift
			if in(data, pos) != (cur != nil && !same) || in(zeros, pos) != (cur == nil && old != nil) {
				t.Fatalf("at %d: data %v, zeros %v", pos, data, zeros)
			}
		}
	})
}

func TestUnsharedIsWhereTheExtentsDiffer(t *testing.T) {
	at := func(start, end, shift int64) piece { return piece{span: span{start, end}, shift: shift} }
	base := []piece{at(0, 10, 100), at(20, 30, 100), at(40, 50, 100)}
	for name, test := range map[string]struct {
		now   []piece
		want  []storage.Span
		known bool
	}{
		"the same":              {base, nil, true},
		"written, dropped":      {[]piece{at(0, 4, 100), at(4, 10, 300), at(40, 50, 100), at(60, 65, 900)}, []storage.Span{{Start: 4, End: 10}, {Start: 20, End: 30}, {Start: 60, End: 65}}, true},
		"a copy shares nothing": {[]piece{at(0, 10, 500), at(20, 30, 500), at(40, 50, 500)}, []storage.Span{{Start: 0, End: 10}, {Start: 20, End: 30}, {Start: 40, End: 50}}, false},
	} {
		got, known := unshared(base, test.now)
		if !slices.Equal(got, test.want) || known != test.known {
			t.Errorf("%s: %v, %v, want %v, %v", name, got, known, test.want, test.known)
		}
	}
}
