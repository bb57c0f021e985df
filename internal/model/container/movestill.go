package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"polder/api"
	"polder/internal/model"
)

// standStill freezes the VE and then cuts it off: what the kernel acknowledges for it in between is in its sockets, and is dumped
// with them; after that it must not acknowledge anything.
func standStill(ctx context.Context, ve model.Spec) error {
	limit, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	for wait := settleWait; ; wait = min(2*wait, settleMost) {
		if err := cgroupOf(ve).freeze(limit, true); err != nil {
			return fmt.Errorf("freeze: %w", err)
		}
		amiss, err := unsettled(ve)
		if err != nil {
			return err
		}
		if amiss == "" {
			return gates(ctx, ve, false)
		}
		// It will be through in a moment.
		if err := cgroupOf(ve).freeze(limit, false); err != nil {
			return fmt.Errorf("%s: %w", amiss, err)
		}
		select {
		case <-limit.Done():
			return errors.Join(ctx.Err(), api.Errorf(api.Precondition, "%s", amiss))
		case <-time.After(wait):
		}
	}
}

// freezeLimit is how long a VE's processes may take to stand still: longer, and one hangs in the kernel.
const freezeLimit = 5 * time.Second

// What a process was at when it was frozen is over after settleWait, nearly always; each time that it is not, it gets twice as long.
const (
	settleWait = 2 * time.Millisecond
	settleMost = 200 * time.Millisecond
)

// unsettled says what of a VE that is frozen CRIU could not carry, though it could a moment later; "": nothing.
func unsettled(ve model.Spec) (amiss string, err error) {
	pid, err := vforking(ve)
	if err != nil {
		return "", err
	}
	if pid > 0 {
		return fmt.Sprintf("process %d starts another and does not come to an end of it", pid), nil
	}
	return unread(ve)
}

// vforking looks in a VE that is frozen for a process that waits for its child between vfork and exec: CRIU can't stop it as
// long as the child does not get on. 0: there is none.
func vforking(ve model.Spec) (pid int, err error) {
	pids, err := pidsOf(ve)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			// The name, which may hold anything, ends with the last parenthesis; the state follows.
			if _, state, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" ")); err == nil && ok && bytes.HasPrefix(state, []byte("D")) {
				return pid, nil
			}
		}
	}
	return 0, nil
}
