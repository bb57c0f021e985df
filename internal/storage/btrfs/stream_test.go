package btrfs

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"
)

func streamHeader() []byte {
	return binary.LittleEndian.AppendUint32([]byte(streamMagic), streamVersion)
}

func attr(kind uint16, value string) []byte {
	b := binary.LittleEndian.AppendUint16(nil, kind)
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(value))), value...)
}

func number(n uint64) string { return string(binary.LittleEndian.AppendUint64(nil, n)) }

func streamed(number uint16, attrs ...[]byte) []byte {
	body := bytes.Join(attrs, nil)
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	b = binary.LittleEndian.AppendUint16(b, number)
	b = append(append(b, 0, 0, 0, 0), body...)
	binary.LittleEndian.PutUint32(b[6:], ^crc32.Update(^uint32(0), crc32.MakeTable(crc32.Castagnoli), b))
	return b
}

// FuzzApply applies any stream to a directory: it ends, and leaves what is beside it alone.
func FuzzApply(f *testing.F) {
	begin := streamed(cmdSubvolume, attr(attrPath, "x"), attr(attrUUID, "0123456789abcdef"))
	f.Add(streamed(cmdMakeFile, attr(attrPath, "a")))
	f.Add(bytes.Join([][]byte{streamed(cmdMakeFile, attr(attrPath, "a")), streamed(cmdWrite, attr(attrPath, "a"), attr(attrOffset, number(3)), attr(attrData, "text"))}, nil))
	f.Add(streamed(cmdRename, attr(attrPath, "a"), attr(attrPathTo, "../beside")))
	f.Add([]byte{cmdMakeDir, 0, 15, 0, 1, 0, '.', cmdSymlink})
	f.Fuzz(func(t *testing.T, body []byte) {
		top := t.TempDir()
		if err := os.Mkdir(top+"/root", 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.Open(top + "/root")
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		a := applier{root: root}
		stream := append(append(streamHeader(), begin...), body...)
		if len(body) > 2 { // also one whose checksum is right
			stream = append(stream, streamed(uint16(body[0])%23, body[1:])...)
		}
		_ = a.apply(t.Context(), bytes.NewReader(append(stream, streamed(cmdEnd)...)))
		if list, err := os.ReadDir(top); err != nil || len(list) != 1 {
			t.Errorf("beside the tree are %v, %v", list, err)
		}
	})
}

func TestDamagedStream(t *testing.T) {
	whole := append(append(streamHeader(), streamed(cmdSubvolume, attr(attrPath, "x"), attr(attrUUID, "0123456789abcdef"))...), streamed(cmdEnd)...)
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for i := range whole {
		if err := (&applier{root: root}).apply(t.Context(), bytes.NewReader(whole[:i])); err == nil {
			t.Errorf("%d of %d bytes were taken for the whole", i, len(whole))
		}
		damaged := bytes.Clone(whole)
		damaged[i] ^= 4
		if err := (&applier{root: root}).apply(t.Context(), bytes.NewReader(damaged)); err == nil {
			t.Errorf("byte %d is damaged, and nobody saw it", i)
		}
	}
	if err := (&applier{root: root}).apply(t.Context(), bytes.NewReader(whole)); err != nil {
		t.Error(err)
	}
}
