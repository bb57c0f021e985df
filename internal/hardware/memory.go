package hardware

import (
	"fmt"
	"strconv"
	"strings"

	"polder/api"
)

// MemoryAvailable is what can be used without swapping, as the kernel estimates it now.
func MemoryAvailable() (api.Bytes, error) {
	text, err := procValue("/proc/meminfo", "MemAvailable")
	if err != nil {
		return 0, fmt.Errorf("measure memory: %w", err)
	}
	kib, err := strconv.ParseInt(strings.TrimSuffix(text, " kB"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("measure memory: MemAvailable %q: %w", text, err)
	}
	return api.Bytes(kib) * api.KiB, nil
}
