package api

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is an amount of memory or disk. On the wire it is a plain number.
type Bytes int64

// Binary units.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var byteUnits = map[string]Bytes{
	"": 1, "b": 1,
	"k": KiB, "kb": KiB, "kib": KiB,
	"m": MiB, "mb": MiB, "mib": MiB,
	"g": GiB, "gb": GiB, "gib": GiB,
	"t": TiB, "tb": TiB, "tib": TiB,
}

// ParseBytes reads "512MiB", "2G", "1.5GiB" or a plain number of bytes. Units are binary whichever way they are
// written, as in QEMU and systemd.
func ParseBytes(s string) (Bytes, error) {
	text := strings.ToLower(strings.TrimSpace(s))
	digits := strings.TrimRight(text, "bkmgti")
	unit, ok := byteUnits[text[len(digits):]]
	n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if !ok || err != nil || n < 0 || math.IsNaN(n) || n*float64(unit) >= math.MaxInt64 {
		return 0, Errorf(Invalid, "size %q: want a number with KiB, MiB, GiB or TiB, such as 512MiB", s)
	}
	return Bytes(n * float64(unit)), nil
}

// String prints the amount in the largest unit that keeps it at one or more: "1.5GiB", "512MiB", "0B".
func (b Bytes) String() string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b >= u.size {
			return strconv.FormatFloat(math.Round(float64(b)/float64(u.size)*10)/10, 'f', -1, 64) + u.name
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}
