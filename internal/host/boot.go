package host

import (
	"fmt"
	"os"
	"strings"

	"polder/internal/model"
)

// bootOf names this boot of the host. A host of a lab boots more often than its machine: there it is the first process
// that is another one each time.
func bootOf() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("identify the boot: %w", err)
	}
	began, err := model.StartTime(1)
	if err != nil {
		return "", fmt.Errorf("identify the boot: %w", err)
	}
	return fmt.Sprintf("%s/%d", strings.TrimSpace(string(id)), began), nil
}

// hostWentDown is the end of VEs that ran when the host lost power or was rebooted.
var hostWentDown = model.Exit{HostDown: true, Reason: "the host went down"}
