package hardware

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"polder/api"
)

// What processes in a container watch files with counts, beside the container's own user, for the one who made its user namespace, and
// so in every namespace up to the machine's: there it is root for all containers, whichever ids they have. A systemd container has
// some six instances, so that the kernel's 128 are used up by some twenty.
var inotifyLimits = []struct {
	name string
	want int
}{
	{"max_user_instances", 1 << 16},
	{"max_user_watches", 1 << 20},
}

const inotifyDir = "/proc/sys/fs/inotify/"

func inotifyLimit(name string) (int, error) {
	text, err := os.ReadFile(inotifyDir + name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// RaiseInotify raises the limits of inotify that all containers of the machine share, and never lowers them.
func RaiseInotify(log *slog.Logger) {
	for _, l := range inotifyLimits {
		now, err := inotifyLimit(l.name)
		if err == nil && now >= l.want {
			continue
		}
		if err == nil {
			err = os.WriteFile(inotifyDir+l.name, []byte(strconv.Itoa(l.want)), 0)
		}
		if err != nil {
			log.Warn("a limit of inotify bounds this host's containers and can't be raised", "sysctl", "fs.inotify."+l.name, "now", now, "error", err)
			continue
		}
		log.Info("raised a limit of inotify that all containers share", "sysctl", "fs.inotify."+l.name, "from", now, "to", l.want)
	}
}

func probeInotify(context.Context) []api.Capability {
	c := api.Capability{Name: "inotify", Level: api.OK}
	var has, wants []string
	for _, l := range inotifyLimits {
		now, err := inotifyLimit(l.name)
		if err != nil {
			c.Level, c.Detail, c.Remedy = api.Missing, "systemd in containers needs it: "+err.Error(), "boot a kernel with CONFIG_INOTIFY_USER (Debian's has)"
			return []api.Capability{c}
		}
		has = append(has, fmt.Sprintf("fs.inotify.%s is %d", l.name, now))
		if now < l.want {
			wants = append(wants, fmt.Sprintf("fs.inotify.%s=%d", l.name, l.want))
		}
	}
	c.Detail = strings.Join(has, ", ") + ", for all containers together; one with systemd takes some six instances"
	if wants != nil {
		c.Level, c.Remedy = api.Limited, "polder serve raises them as it starts; by hand: sysctl -w "+strings.Join(wants, " ")
	}
	return []api.Capability{c}
}
