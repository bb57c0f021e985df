package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"polder/api"
	"polder/internal/model"
)

// factsVersion is that of what was frozen, as Save writes it.
const factsVersion = 1

// Files of Save. The memory's name is how findMemory knows it.
const (
	savedState = "state"
	savedFacts = "facts.json"
)

// Save implements model.Frozen.
func (f *frozen) Save(ctx context.Context, dir string) error {
	info, err := f.memory.Stat()
	if err != nil {
		return err
	}
	err = save(filepath.Join(dir, memoryName), func(to *os.File) error {
		if err := to.Truncate(info.Size()); err != nil {
			return err
		}
		return copyData(ctx, to, f.memory)
	})
	if err == nil {
		err = save(filepath.Join(dir, savedState), func(to *os.File) error {
			_, err := io.Copy(to, io.NewSectionReader(f.state, 0, 1<<40))
			return err
		})
	}
	if err == nil {
		err = writeJSON(filepath.Join(dir, savedFacts), f.facts)
	}
	if err != nil {
		return fmt.Errorf("save the memory of vm %q: %w", f.facts.Name, err)
	}
	return nil
}

func save(path string, fill func(to *os.File) error) error {
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(fill(to), to.Sync(), to.Close())
}

// OpenFrozen implements model.Forker. The memory stays in its file: forks share what they read of it with each other, in the host's page cache.
func (m *Model) OpenFrozen(dir string) (model.Frozen, error) {
	f := &frozen{}
	err := readJSON(filepath.Join(dir, savedFacts), &f.facts)
	if err == nil && f.facts.Version > factsVersion {
		err = api.Errorf(api.Unsupported, "it has version %d, newer than %d: use a newer polder", f.facts.Version, factsVersion)
	}
	if err == nil {
		f.memory, err = os.Open(filepath.Join(dir, memoryName))
	}
	if err == nil {
		if f.state, err = os.Open(filepath.Join(dir, savedState)); err != nil {
			f.memory.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the memory of a vm: %w", err)
	}
	return f, nil
}

// tellTime sets the clock inside, which stood still since the VE was frozen. One without an agent sets it by itself, or not.
func (m *Model) tellTime(ctx context.Context, ve model.Spec) {
	ctx, cancel := context.WithTimeout(ctx, renamePatience)
	defer cancel()
	_ = m.attached(ve).agent.call(ctx, "guest-set-time", map[string]any{"time": time.Now().UnixNano()}, nil)
}
