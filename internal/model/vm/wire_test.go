package vm

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
)

// What the other host says is not trusted to be well formed, nor to end.
func FuzzReadNote(f *testing.F) {
	f.Add([]byte("{\"kind\":\"beat\"}\n"))
	f.Add([]byte("{\"kind\":\"hello\",\"hello\":{\"version\":1,\"machine\":{}}}\n"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		n, err := readNote(bufio.NewReader(bytes.NewReader(data)))
		if err == nil && n.Hello != nil {
			_, _ = settled(n.Hello.Machine)
		}
	})
}

func TestNotesAreBounded(t *testing.T) {
	long := strings.NewReader(strings.Repeat(" ", longestNote+1))
	if _, err := readNote(bufio.NewReader(long)); err == nil || !strings.Contains(err.Error(), "too much") {
		t.Errorf("got %v", err)
	}
	if _, err := readNote(bufio.NewReader(strings.NewReader("{"))); err == nil {
		t.Error("half a note was taken")
	}
}

func TestSettledRefusesWhatItCannotKnow(t *testing.T) {
	for _, bad := range []string{"", "{}", `{"version":99,"machine":"pc-q35-10.0","cpu":"max"}`, `[]`} {
		if _, err := settled([]byte(bad)); err == nil {
			t.Errorf("%q was taken for a machine", bad)
		}
	}
}
