package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"polder/api"
	"polder/internal/model"
	"polder/internal/qmp"
)

// Names of what a move makes in QEMU; nothing of it stays there.
const (
	moveKey     = "move-key"    // TLS credentials
	moveExport  = "move-disk"   // the target's disk, for the source to write to
	mirrorWork  = "move-mirror" // what is written goes to both disks
	backupWork  = "move-backup" // what was written before that
	mirrorDisk  = "move-disk-1" // the target's disk, as the source's QEMU sees it
	backupDisk  = "move-disk-2"
	moveBitmap  = "move"
	diskFormat  = "disk0"
	diskFile    = "disk0-file"
	memoryPlace = "move-listen"
	forkMemory  = "fork-memory"
	stateSet    = 70 // number of the set of files with the state of a fork
)

// monitor is QEMU's second QMP connection, that of moves: what else is asked of QEMU meanwhile goes by the first one, and never
// waits for a move.
type monitor struct {
	*qmp.Client
	still time.Time // when the VE's CPUs last stopped, as far as await has seen
}

// openMonitor connects to the VE's QEMU, which must run.
func (m *Model) openMonitor(ctx context.Context, ve model.Spec) (*monitor, error) {
	if pid, err := holder(ve); err != nil {
		return nil, err
	} else if pid == 0 {
		return nil, notRunning(ve)
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	c, err := qmp.Dial(ctx, moveSocket(ve))
	if err != nil {
		return nil, err
	}
	return &monitor{Client: c}, nil
}

// do runs a command that takes no time by itself.
func (m *monitor) do(ctx context.Context, command string, arguments map[string]any) error {
	return m.ask(ctx, command, arguments, nil)
}

func (m *monitor) ask(ctx context.Context, command string, arguments map[string]any, result any) error {
	asking, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	var args any
	if arguments != nil {
		args = arguments
	}
	err := m.Execute(asking, command, args, result)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(api.Unavailable, "%w", err)
	}
	return err
}

// await asks again and again, at each event and at least each period, until check says that it is over. What has happened until
// then is noted.
func (m *monitor) await(ctx context.Context, period time.Duration, check func() (over bool, err error)) error {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	defer m.catchUp()
	for {
		over, err := check()
		if over || err != nil {
			return err
		}
		select {
		case event := <-m.Events(): // closed: the next check fails
			m.notice(event)
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (m *monitor) notice(event qmp.Event) {
	if event.Name == "STOP" {
		m.still = event.Time
	}
}

// catchUp takes note of the events that have come already.
func (m *monitor) catchUp() {
	for {
		select {
		case event, open := <-m.Events():
			if !open {
				return
			}
			m.notice(event)
		default:
			return
		}
	}
}

// status is QEMU's word for the VE's state.
func (m *monitor) status(ctx context.Context) (string, error) {
	var got struct {
		Status string `json:"status"`
	}
	err := m.ask(ctx, "query-status", nil, &got)
	return got.Status, err
}

// migration is what QEMU tells of a migration.
type migration struct {
	Status    string `json:"status"`
	ErrorDesc string `json:"error-desc"`
	RAM       struct {
		Transferred int64 `json:"transferred"`
		Remaining   int64 `json:"remaining"`
		Total       int64 `json:"total"`
		Rounds      int   `json:"dirty-sync-count"`
		DirtyPages  int64 `json:"dirty-pages-rate"` // a second
		PageSize    int64 `json:"page-size"`
	} `json:"ram"`
	Throttle int      `json:"cpu-throttle-percentage"`
	Blocked  []string `json:"blocked-reasons"`
	Listens  []struct {
		Host string `json:"host"`
		Port string `json:"port"`
	} `json:"socket-address"`
}

func (m *monitor) migration(ctx context.Context) (got migration, err error) {
	err = m.ask(ctx, "query-migrate", nil, &got)
	return got, err
}

// dirty is how many bytes of memory the VE writes to per second, as seen in the last round that took a second.
func (g migration) dirty() int64 { return g.RAM.DirtyPages * g.RAM.PageSize }

// failed is the error of a migration that has ended without success; nil of another.
func (g migration) failed() error {
	switch g.Status {
	case "failed", "cancelled", "cancelling", "failing":
		if g.ErrorDesc == "" {
			return fmt.Errorf("the memory's migration is %s", g.Status)
		}
		return fmt.Errorf("the memory's migration is %s: %s", g.Status, g.ErrorDesc)
	}
	return nil
}

// work is a block job of QEMU.
type work struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Done    int64  `json:"current-progress"`
	Total   int64  `json:"total-progress"`
	Problem string `json:"error"`
}

// works lists QEMU's block jobs by id.
func (m *monitor) works(ctx context.Context) (map[string]work, error) {
	var list []work
	if err := m.ask(ctx, "query-jobs", nil, &list); err != nil {
		return nil, err
	}
	all := map[string]work{}
	for _, w := range list {
		all[w.ID] = w
	}
	return all, nil
}

// Capabilities of QEMU's migration that moves use; all others stay as they are, off. Multifd does not go with post-copy before
// QEMU 10.1; with preempt, pages that the VE waits for don't queue behind the others.
var (
	anyCopy  = []string{"events", "pause-before-switchover", "return-path"}
	preCopy  = []string{"multifd", "auto-converge"}
	postCopy = []string{"postcopy-ram", "postcopy-preempt"}
	forkCopy = []string{"x-ignore-shared"} // the memory stays where it is: see arguments
)

func moveCapabilities(follows bool) map[string]any {
	if follows {
		return capabilities(true, anyCopy, postCopy)
	}
	return capabilities(true, anyCopy, preCopy)
}

func capabilities(on bool, names ...[]string) map[string]any {
	var list []map[string]any
	for _, name := range slices.Concat(names...) {
		list = append(list, map[string]any{"capability": name, "state": on})
	}
	return map[string]any{"capabilities": list}
}

// tidy takes back what a move has left in QEMU, whichever end it is and how far it came; of a QEMU without a move it finds nothing.
// A migration that is under way is cancelled.
func (m *monitor) tidy(ctx context.Context) error {
	if err := m.cancelMigration(ctx); err != nil {
		return err
	}
	if err := m.cancelWorks(ctx); err != nil {
		return err
	}
	var errs []error
	for _, undo := range []struct {
		command string
		args    map[string]any
	}{
		{"block-dirty-bitmap-remove", map[string]any{"node": diskFile, "name": moveBitmap}},
		{"blockdev-del", map[string]any{"node-name": backupDisk}},
		{"blockdev-del", map[string]any{"node-name": mirrorDisk}},
		{"nbd-server-stop", nil},
		{"remove-fd", map[string]any{"fdset-id": stateSet}},
		{"closefd", map[string]any{"fdname": forkMemory}},
		{"migrate-set-capabilities", capabilities(false, anyCopy, preCopy, postCopy, forkCopy)},
		{"migrate-set-parameters", map[string]any{"tls-creds": "", "tls-hostname": "", "max-bandwidth": defaultBandwidth, "max-postcopy-bandwidth": 0, "avail-switchover-bandwidth": 0}},
		{"object-del", map[string]any{"id": moveKey}},
	} {
		if err := m.do(ctx, undo.command, undo.args); err != nil && !absent(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// defaultBandwidth is QEMU's own, in bytes per second.
const defaultBandwidth = 128 << 20

// absent says that QEMU refused to remove something because it is not there.
func absent(err error) bool {
	var refused *qmp.Error
	if !errors.As(err, &refused) {
		return false
	}
	for _, text := range []string{"not found", "Failed to find node", "Cannot find", "not running", "No such", "not open"} {
		if strings.Contains(refused.Desc, text) {
			return true
		}
	}
	return false
}

func (m *monitor) cancelMigration(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cancelPatience)
	defer cancel()
	asked := false
	return m.await(ctx, 5*time.Millisecond, func() (bool, error) {
		got, err := m.migration(ctx)
		switch {
		case err != nil:
			return false, err
		case strings.HasPrefix(got.Status, "postcopy"):
			return false, api.Errorf(api.Conflict, "the VE has gone over to the other host already")
		case got.Status == "" || got.Status == "none" || got.Status == "completed" || got.Status == "failed" || got.Status == "cancelled":
			return true, nil
		case !asked:
			asked = true
			return false, m.do(ctx, "migrate_cancel", nil)
		}
		return false, nil
	})
}

// cancelPatience is how long QEMU may take to leave off. It waits for nothing but its own disk.
const cancelPatience = 30 * time.Second

func (m *monitor) cancelWorks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cancelPatience)
	defer cancel()
	asked := map[string]bool{}
	return m.await(ctx, 5*time.Millisecond, func() (bool, error) {
		all, err := m.works(ctx)
		if err != nil {
			return false, err
		}
		left := false
		for _, id := range []string{backupWork, mirrorWork} {
			w, ok := all[id]
			if !ok {
				continue
			}
			left = true
			if w.Status == "concluded" {
				err = m.do(ctx, "job-dismiss", map[string]any{"id": id})
			} else if !asked[id] {
				asked[id] = true
				err = m.do(ctx, "block-job-cancel", map[string]any{"device": id, "force": true})
			}
			if err != nil && !absent(err) && !qmp.IsClass(err, "DeviceNotActive") {
				return false, err
			}
		}
		return !left, nil
	})
}
