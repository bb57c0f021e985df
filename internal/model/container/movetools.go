package container

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"polder/internal/command"
)

// toolsDir has the tools that criu runs, and nothing else, so that it does not run those that it need not.
const toolsDir = "/run/polder/criu"

// tools of criu that stand for others. Addresses and routes are carried by netConfig. What is in a VE's tmpfs is not worth compressing:
// base64 is a program that every host has and that, like gzip, takes back what it did when called with -d.
var tools = map[string]string{"tar": "tar", "sh": "sh", "ip": "true", "gzip": "base64"}

// findTools makes the directory and returns the PATH for criu. iptables: the VE uses tables of the old kind, which only criu's
// own tools can carry.
func findTools(iptables bool) (path string, err error) {
	if err := os.MkdirAll(toolsDir, 0o755); err != nil {
		return "", err
	}
	for name, stand := range tools {
		target, err := command.Find(stand)
		if err != nil {
			return "", err
		}
		link := filepath.Join(toolsDir, name)
		if now, err := os.Readlink(link); err == nil && now == target {
			continue
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	if iptables {
		return toolsDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", nil
	}
	return toolsDir, nil
}

// usesIptables says whether the network namespace of pid has tables of the old kind.
func usesIptables(pid int) bool {
	for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
		names, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if err == nil && len(bytes.TrimSpace(names)) > 0 {
			return true
		}
	}
	return false
}

// carriedElsewhere says whether an image holds what others carry; criu takes one that is missing as empty.
func carriedElsewhere(image string, iptables bool) bool {
	for _, prefix := range []string{"ifaddr-", "route-", "route6-", "rule-"} {
		if strings.HasPrefix(image, prefix) {
			return true
		}
	}
	return !iptables && (strings.HasPrefix(image, "iptables-") || strings.HasPrefix(image, "ip6tables-"))
}
