package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"polder/api"
)

func gzipped(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, content []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(content, nil)
}

func qcow2Header(change func(h []byte)) []byte {
	h := make([]byte, 512)
	copy(h, "QFI\xfb")
	binary.BigEndian.PutUint32(h[4:], 3)
	binary.BigEndian.PutUint32(h[20:], 16)
	binary.BigEndian.PutUint64(h[24:], 1<<30)
	change(h)
	return h
}

func TestImportRefuses(t *testing.T) {
	w := newWorld(t)
	system := smallSystem(t)
	flipped := gzipped(t, system)
	flipped[len(flipped)/2] ^= 0x10
	flippedZ := zstded(t, system)
	flippedZ[len(flippedZ)-1] ^= 0x10 // in the checksum
	mbr := make([]byte, 4096)
	mbr[510], mbr[511], mbr[0x1be+4], mbr[0x1be+12] = 0x55, 0xaa, 0x83, 0xff
	bomb := gzipped(t, make([]byte, 300<<20))
	for name, c := range map[string]struct {
		content []byte
		kind    api.Kind
		want    string
	}{
		"empty":             {nil, api.Invalid, "empty"},
		"text":              {[]byte("hello"), api.Invalid, "not a known format"},
		"vmdk":              {[]byte("KDMV"), api.Unsupported, "VMDK"},
		"no system":         {archive(t, member("file", 0x30, "")), api.Invalid, "no system"},
		"truncated tar":     {system[:len(system)-1024], api.Invalid, "truncated"},
		"truncated gzip":    {gzipped(t, system)[:100], api.Invalid, "truncated"},
		"truncated zstd":    {zstded(t, system)[:100], api.Invalid, "truncated"},
		"flipped gzip":      {flipped, api.Invalid, "damaged"},
		"flipped zstd":      {flippedZ, api.Invalid, "damaged"},
		"bomb":              {bomb, api.Invalid, "bomb"},
		"climbing tar":      {gzipped(t, archive(t, member("../../evil", 0x30, ""))), api.Invalid, `"../../evil"`},
		"qcow2 with parent": {qcow2Header(func(h []byte) { h[15], h[19] = 200, 4; copy(h[200:], "/etc") }), api.Invalid, "backing file"},
		"qcow2 with data":   {qcow2Header(func(h []byte) { h[79] = qcow2DataFile }), api.Invalid, "another file"},
		"qcow2 encrypted":   {qcow2Header(func(h []byte) { h[35] = 1 }), api.Unsupported, "encrypted"},
		"qcow2 huge":        {qcow2Header(func(h []byte) { h[24] = 0x7f }), api.Invalid, "virtual size"},
		"qcow2 truncated":   {qcow2Header(func([]byte) {})[:40], api.Invalid, "truncated"},
		"cut disk":          {mbr, api.Invalid, "truncated"},
		"cut squashfs":      {append([]byte("hsqs"), bytes.Repeat([]byte{1}, 200)...), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			op := w.importFile(t, "bad", c.content)
			if op.State != api.OperationFailed || c.kind != "" && op.Error.Kind != c.kind || !strings.Contains(op.Error.Detail, c.want) {
				t.Errorf("%s: %+v, want %v with %q", op.State, op.Error, c.kind, c.want)
			}
			if left := w.leftovers(t); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestImportRequestRefuses(t *testing.T) {
	w := newWorld(t)
	for _, req := range []api.ImageImportRequest{
		{Alias: ""}, {Alias: "../x"}, {Alias: "A"}, {Alias: "a", Format: "zip"}, {Alias: "a", SizeBytes: 7}, {Alias: "a", SizeBytes: 1 << 60},
	} {
		if op, err := w.lib.Import(t.Context(), req, strings.NewReader("12345678")); err == nil {
			t.Errorf("%+v: started %+v", req, op)
		}
	}
	if _, err := w.lib.Import(t.Context(), api.ImageImportRequest{Alias: "a"}, io.MultiReader(strings.NewReader("x"), brokenReader{})); err == nil {
		t.Error("a body that breaks off is taken")
	}
	if left := w.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestImportCompressed(t *testing.T) {
	w := newWorld(t)
	for alias, content := range map[string][]byte{"plain": smallSystem(t), "gz": gzipped(t, smallSystem(t)), "zst": zstded(t, smallSystem(t))} {
		if op := w.importFile(t, alias, content); op.State != api.OperationDone {
			t.Errorf("%s: %+v", alias, op.Error)
		}
	}
	if images, err := w.lib.List(t.Context()); err != nil || len(images) != 1 || len(images[0].Aliases) != 3 {
		t.Errorf("the compression changes the image: %+v, %v", images, err)
	}
}

func TestLayoutRoundTrip(t *testing.T) {
	w := newWorld(t)
	w.importFile(t, "system", smallSystem(t))
	image, err := w.lib.Resolve(t.Context(), "system")
	if err != nil {
		t.Fatal(err)
	}
	// The test system has no programs to tell its architecture by.
	rec, err := w.lib.Images.Get(t.Context(), image.Digest)
	if err != nil {
		t.Fatal(err)
	}
	rec.Value.Image.Arch = "amd64"
	rec.Value.Image.Config = &api.ImageConfig{Entrypoint: []string{"/sbin/init"}, Env: []string{"A=b"}}
	if _, err := w.lib.Images.Update(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	var layout bytes.Buffer
	if err := w.lib.Export(t.Context(), "system", api.FormatAuto, &layout); err != nil {
		t.Fatal(err)
	}
	if op := w.importFile(t, "again", layout.Bytes()); op.State != api.OperationDone {
		t.Fatalf("%+v", op.Error)
	}
	got, err := w.lib.Resolve(t.Context(), "again")
	if err != nil || got.Config == nil || got.Config.Entrypoint[0] != "/sbin/init" || got.Config.Env[0] != "A=b" || got.Release != "13" || got.Provenance.Method != "oci" {
		t.Errorf("%+v, %v", got, err)
	}
	var one, two bytes.Buffer
	for ref, b := range map[string]*bytes.Buffer{"system": &one, "again": &two} {
		if err := w.lib.Export(t.Context(), ref, api.FormatTar, b); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the tree changed on its way")
	}
	if err := w.lib.Export(t.Context(), "system", api.FormatRaw, io.Discard); api.KindOf(err) != api.Unsupported {
		t.Errorf("export of a disk that is not there: %v", err)
	}
	// What the layers' digests are for. (Where the image is known already, the layers are not looked at.)
	w = newWorld(t)
	at := bytes.Index(layout.Bytes(), []byte("\x1f\x8b"))
	bad := bytes.Clone(layout.Bytes())
	bad[at+100] ^= 1
	if op := w.importFile(t, "bad", bad); op.State != api.OperationFailed || op.Error.Kind != api.Invalid {
		t.Errorf("%+v", op)
	}
}

func FuzzSniff(f *testing.F) {
	for _, seed := range [][]byte{smallSystem(f), gzipped(f, []byte("x")), zstded(f, []byte("x")), qcow2Header(func([]byte) {}), []byte("hsqs")} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		head := data[:min(len(data), sniffSize)]
		format, how, err := sniff(head)
		if (err == nil) == (format == "") {
			t.Fatalf("%q, %v", format, err)
		}
		if how == gz || how == zst {
			r, err := decompress(context.Background(), bytes.NewReader(data), how)
			if err == nil {
				_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
				r.Close()
			}
		}
		_, _ = checkQcow2(bytes.NewReader(data))
		_ = checkPartitions(bytes.NewReader(data), int64(len(data)))
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := openLayout(path); err == nil && l != nil {
			_, _ = l.image()
			l.Close()
		}
	})
}
