package pooldir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"polder/api"
)

// toTrash takes a base or volume out of sight at one instant; "": it was not there.
func (p *Pool) toTrash(dir string) (string, error) {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if at, err := mountBelow(dir); err != nil {
		return "", err
	} else if at != "" {
		return "", api.Errorf(api.Conflict, "delete %s: %s is mounted: umount it first", dir, at)
	}
	trash := filepath.Join(p.path, "trash", rand.Text())
	err := os.Rename(dir, trash)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return trash, err
}

// mountBelow finds a mount at or below dir in this mount namespace; "": there is none. Removing a tree must not reach
// into what is mounted in it.
func mountBelow(dir string) (string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line) // see proc(5): the fifth is the mount point
		if len(fields) < 5 {
			continue
		}
		if at := unescape(fields[4]); at == dir || strings.HasPrefix(at, dir+"/") {
			return at, nil
		}
	}
	return "", nil
}

// unescape undoes what the kernel does to blanks and backslashes in mountinfo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// discard removes a half-made base or volume; one that is not there is no error.
func (p *Pool) discard(ctx context.Context, dir string) error {
	trash, err := p.toTrash(dir)
	if err != nil || trash == "" {
		return err
	}
	return p.driver.Purge(ctx, trash)
}

// Tidy is storage.Pool's.
func (p *Pool) Tidy(ctx context.Context) error {
	var problems []error
	for _, section := range []string{"bases", "volumes"} {
		names, err := p.names(section)
		if err != nil {
			return err
		}
		for _, name := range names {
			dir := filepath.Join(p.path, section, name)
			if payloadIn(dir) == "" {
				problems = append(problems, p.discard(ctx, dir))
			} else if section == "volumes" {
				problems = append(problems, p.endTransfer(ctx, dir))
			}
		}
	}
	names, err := p.names("trash")
	if err != nil {
		return err
	}
	for _, name := range names {
		problems = append(problems, p.driver.Purge(ctx, filepath.Join(p.path, "trash", name)))
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("tidy pool %q: %w", p.name, err)
	}
	return nil
}

// names lists a section of the pool, sorted.
func (p *Pool) names(section string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(p.path, section))
	if err != nil {
		return nil, fmt.Errorf("list %s of pool %q: %w", section, p.name, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
