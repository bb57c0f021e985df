package container

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"polder/api"
)

func TestFramesArriveAsTheyWereSent(t *testing.T) {
	var wire bytes.Buffer
	out := &frameWriter{w: &wire}
	sent := offer{Version: moveVersion, ID: "x", IDBase: 1 << 20, Paused: true}
	if err := out.message(sent); err != nil {
		t.Fatal(err)
	}
	if err := out.write(frameImage, "pages-1.img", 4096, []byte("memory")); err != nil {
		t.Fatal(err)
	}
	in := &frameReader{r: &wire}
	var got offer
	if err := in.message(&got); err != nil || got != sent {
		t.Errorf("got %+v, %v; want %+v", got, err, sent)
	}
	f, err := in.next()
	if err != nil || f.kind != frameImage || f.name != "pages-1.img" || f.offset != 4096 || string(f.data) != "memory" {
		t.Errorf("got %+v, %v", f, err)
	}
	if _, err := in.next(); err != io.EOF {
		t.Errorf("after the last frame: %v; want io.EOF", err)
	}
}

// raw is a frame with any header.
func raw(kind byte, name string, size uint32, offset uint64, data string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind, byte(len(name)), 0, 0}, size)
	return append(append(binary.BigEndian.AppendUint64(b, offset), name...), data...)
}

func TestFramesThatAreRefused(t *testing.T) {
	for name, frame := range map[string][]byte{
		"kind":             raw(9, "", 0, 0, ""),
		"huge message":     raw(1, "", messageLimit+1, 0, ""),
		"huge chunk":       raw(2, "a.img", chunkSize+1, 0, ""),
		"far offset":       raw(2, "a.img", 1, imageLimit+1, "x"),
		"image, no name":   raw(2, "", 1, 0, "x"),
		"path":             raw(2, "../a.img", 1, 0, "x"),
		"absolute":         raw(2, "/etc/a.img", 1, 0, "x"),
		"not an image":     raw(2, "restore.log", 1, 0, "x"),
		"hidden":           raw(2, ".img", 1, 0, "x"),
		"named message":    raw(1, "a.img", 0, 0, ""),
		"nul in the name":  raw(2, "a\x00.img", 1, 0, "x"),
		"newline at end":   raw(2, "a.img\n", 1, 0, "x"),
		"name of 65 bytes": raw(2, strings.Repeat("a", 65)+".img", 1, 0, "x"),
	} {
		if f, err := (&frameReader{r: bytes.NewReader(frame)}).next(); api.KindOf(err) != api.Invalid {
			t.Errorf("%s: %+v, %v; want an invalid frame", name, f, err)
		}
	}
	if _, err := (&frameReader{r: bytes.NewReader(raw(2, "a.img", 10, 0, "x"))}).next(); err != io.ErrUnexpectedEOF {
		t.Errorf("a frame that is cut off: %v", err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(raw(1, "", 2, 0, "{}"))
	f.Add(raw(2, "pages-1.img", 3, 7, "abc"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		in := &frameReader{r: bytes.NewReader(wire)}
		for {
			got, err := in.next()
			if err != nil {
				return
			}
			if got.kind == frameImage && strings.ContainsAny(got.name, "/\x00") {
				t.Fatalf("name %q", got.name)
			}
		}
	})
}
