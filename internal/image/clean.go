package image

import (
	"os"
	"path"
	"path/filepath"

	"polder/internal/model"
)

// forgotten are what an image of a system that has run does not have: by what others know it, and what only that run needed. Patterns of
// path.Match, from the root.
func forgotten() []string {
	return append(model.Identity(),
		"/etc/hostname", "/etc/ssh/ssh_host_*", "/etc/udev/rules.d/70-persistent-*", "/lost+found",
		"/var/lib/dhcp/*.leases", "/var/lib/NetworkManager/secret_key",
		"/var/lib/cloud/instances", "/var/lib/cloud/sem", "/var/lib/cloud/data", "/var/lib/cloud/seed/nocloud",
		"/var/log/journal/*", "/dev/*", "/proc/*", "/run/*", "/sys/*", "/tmp/*",
	)
}

// substitute stands in an archive for a file of the tree: a link, or a file with mode 0444 or 0644.
type substitute struct {
	link    string
	content []byte
	mode    int64
}

// cleaner decides what of a system that has run goes into an image.
type cleaner struct {
	patterns []string
	instead  map[string]substitute
}

// newCleaner makes one for a tree. A container's name and addresses are in files that its host has written.
func newCleaner(tree string, container bool) (*cleaner, error) {
	c := &cleaner{patterns: forgotten(), instead: map[string]substitute{model.MachineIDFile: {mode: 0o444}}}
	if !container {
		return c, nil
	}
	hosts, err := builtTree.ReadFile("tree/etc/hosts")
	if err != nil {
		return nil, err
	}
	c.instead["/etc/hosts"] = substitute{content: hosts, mode: 0o644}
	if _, err := os.Lstat(filepath.Join(tree, "usr/lib/systemd/systemd-resolved")); err == nil {
		c.instead["/etc/resolv.conf"] = substitute{link: "../run/systemd/resolve/stub-resolv.conf"}
	} else {
		c.patterns = append(c.patterns, "/etc/resolv.conf")
	}
	return c, nil
}

// leaves says whether a file, by its path from the root, is left out. A nil cleaner leaves out nothing.
func (c *cleaner) leaves(name string) bool {
	if c == nil {
		return false
	}
	for _, pattern := range c.patterns {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			return true
		}
	}
	return false
}

// of is what stands for a file, if it is not itself.
func (c *cleaner) of(name string) (substitute, bool) {
	if c == nil {
		return substitute{}, false
	}
	s, ok := c.instead[name]
	return s, ok
}
