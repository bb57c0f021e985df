package api

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "1": 1, "512MiB": 512 * MiB, "512m": 512 * MiB, "2G": 2 * GiB, "1.5GiB": GiB + GiB/2, " 3 TB ": 3 * TiB, "10kb": 10 * KiB,
	} {
		if got, err := ParseBytes(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "lots", "-1", "1MiBs", "MiB", "9999999TiB", "nan", "inf", "0x10", "1ib", "1 2"} {
		if got, err := ParseBytes(text); KindOf(err) != Invalid {
			t.Errorf("%q: got %d, %v; want an error of kind invalid", text, got, err)
		}
	}
}

// What is printed is read back as nearly the same amount.
func FuzzBytes(f *testing.F) {
	f.Add(int64(1536 * MiB))
	f.Add(int64(1))
	f.Fuzz(func(t *testing.T, n int64) {
		if n < 0 || n > int64(1000*TiB) {
			return
		}
		back, err := ParseBytes(Bytes(n).String())
		if diff := float64(back) - float64(n); err != nil || diff > float64(n)/10 || -diff > float64(n)/10 {
			t.Errorf("%d prints as %q, which reads as %d, %v", n, Bytes(n), back, err)
		}
	})
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"c1": true, "a": true, "web-1": true, strings.Repeat("a", 63): true,
		"": false, "1c": false, "-a": false, "a-": false, "A": false, "a.b": false, "a_b": false, "a b": false, "ä": false, "a\n": false,
		strings.Repeat("a", 64): false,
	} {
		if err := CheckName("ve", name); (err == nil) != ok || !ok && KindOf(err) != Invalid {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestErrorsKeepKindAndCause(t *testing.T) {
	err := fmt.Errorf("launch %q: %w", "c1", Errorf(Exhausted, "pool is full: %w", io.ErrShortWrite))
	if KindOf(err) != Exhausted || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("kind %q, cause kept: %v", KindOf(err), errors.Is(err, io.ErrShortWrite))
	}
	back := ProblemOf(err).Err()
	if KindOf(back) != Exhausted || back.Error() != err.Error() {
		t.Errorf("over the wire it becomes %q, %v", KindOf(back), back)
	}
	if KindOf(io.EOF) != Internal || KindOf(nil) != "" || ProblemOf(nil).Err() != nil {
		t.Error("an error without a kind is internal; no error has none")
	}
}

func TestEveryKindHasItsRow(t *testing.T) {
	want := map[Kind]int{
		NotFound: 3, Exists: 4, Conflict: 4, Invalid: 2, Precondition: 4, Unsupported: 1, Exhausted: 1, Unavailable: 1, Cancelled: 5, Internal: 1,
	}
	for kind, code := range want {
		if kind.ExitCode() != code || kind.Status() < 400 || kind.Status() > 599 {
			t.Errorf("%s: exit code %d, status %d", kind, kind.ExitCode(), kind.Status())
		}
	}
	if len(kinds) != len(want) {
		t.Errorf("%d kinds, %d checked", len(kinds), len(want))
	}
}
