package dir

import (
	"bufio"
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// treeStream is a stream of these entries; files have no content.
func treeStream(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var stream bytes.Buffer
	w := bufio.NewWriter(&stream)
	for _, e := range append(append([]entry{{Do: doBegin, Size: treeVersion}}, entries...), entry{Do: doEnd}) {
		if err := writeEntry(w, e); err != nil {
			t.Fatal(err)
		}
		if e.Mode&unix.S_IFMT == unix.S_IFREG && e.Mode != 0 {
			w.WriteByte('e')
		}
	}
	w.Flush()
	return stream.Bytes()
}

// FuzzReceiveTree applies any stream to a directory: it ends, and leaves what is beside it alone.
func FuzzReceiveTree(f *testing.F) {
	f.Add(treeStream(f, entry{Do: doMake, Path: []byte("a"), Mode: unix.S_IFREG | 0o600}, entry{Do: doLink, Path: []byte("b"), Target: []byte("a")}))
	f.Add(treeStream(f, entry{Do: doMake, Path: []byte("../a"), Mode: unix.S_IFDIR | 0o700}))
	f.Add(treeStream(f, entry{Do: doRemove, Path: []byte("../beside")}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		top := t.TempDir()
		for _, dir := range []string{"/root", "/beside"} {
			if err := os.Mkdir(top+dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		_ = receiveTree(t.Context(), top+"/root", map[string]unix.Timespec{}, bytes.NewReader(stream))
		if list, err := os.ReadDir(top); err != nil || len(list) != 2 {
			t.Errorf("beside the tree are %v, %v", list, err)
		}
		_ = os.Chmod(top+"/root", 0o700) // for it to be removed
	})
}
