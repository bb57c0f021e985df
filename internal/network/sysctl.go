package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// procSys is where the kernel's settings are.
const procSys = "/proc/sys/"

// setting is a kernel setting by its path below procSys.
type setting struct{ name, value string }

// sysctls changes kernel settings and remembers in a file what they were, so that they can be put back. The file lives
// as long as the settings do when it is below /run.
type sysctls struct{ file string }

// change is what was there before, and what was put there.
type change struct {
	Was string `json:"was"`
	Set string `json:"set"`
}

// forward lets the host route between the network and the world. An interface that learns its own routes by router
// advertisements would stop doing so on a router; accept_ra=2 keeps it listening.
func (s *sysctls) forward() error {
	const all6 = "net/ipv6/conf/all/forwarding"
	if on, err := readSetting(all6); err != nil {
		return err
	} else if on == "0" {
		listening, err := filepath.Glob(procSys + "net/ipv6/conf/*/accept_ra")
		if err != nil {
			return err
		}
		for _, path := range listening {
			name := strings.TrimPrefix(path, procSys)
			if value, err := readSetting(name); err != nil || value != "1" {
				continue
			}
			if err := s.set(name, "2"); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{"net/ipv4/ip_forward", all6} {
		if err := s.set(name, "1"); err != nil {
			return err
		}
	}
	return nil
}

// set changes a setting that has another value, and remembers the first one it had.
func (s *sysctls) set(name, value string) error {
	was, err := readSetting(name)
	if err != nil || was == value {
		return err
	}
	changes, err := s.load()
	if err != nil {
		return err
	}
	if old, ok := changes[name]; ok {
		was = old.Was
	}
	changes[name] = change{Was: was, Set: value}
	text, err := json.Marshal(changes)
	if err != nil {
		return err
	}
	if err := writeFile(s.file, text); err != nil {
		return err
	}
	return s.write(name, value)
}

// write changes a setting for good: one of a link of ours, which goes away with the link.
func (*sysctls) write(name, value string) error {
	if was, err := readSetting(name); err != nil || was == value {
		return err
	}
	if err := os.WriteFile(procSys+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}

// restore puts back what set changed, except where somebody has changed it since.
func (s *sysctls) restore() error {
	changes, err := s.load()
	if err != nil {
		return err
	}
	var failed error
	for name, c := range changes {
		if now, err := readSetting(name); err == nil && now == c.Set {
			failed = errors.Join(failed, s.write(name, c.Was))
		}
	}
	if failed != nil {
		return failed
	}
	return removeFile(s.file)
}

func (s *sysctls) load() (map[string]change, error) {
	changes := map[string]change{}
	text, err := os.ReadFile(s.file)
	if errors.Is(err, os.ErrNotExist) {
		return changes, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &changes)
	}
	if err != nil {
		return nil, fmt.Errorf("read saved kernel settings: %w", err)
	}
	return changes, nil
}

func readSetting(name string) (string, error) {
	text, err := os.ReadFile(procSys + name)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	return strings.TrimSpace(string(text)), nil
}
