package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
)

var _ model.Forker = (*Model)(nil)

// frozen is what a fork begins with. Nobody writes to the memory any more: whoever has it mapped has a private mapping, so that
// what it writes is its own.
type frozen struct {
	memory, state *os.File
	facts         facts
	stood         time.Duration
}

// facts are what else is known of what was frozen.
type facts struct {
	Version     int     `json:"version"`
	ID          string  `json:"id"` // of the VE
	Name        string  `json:"name"`
	Machine     machine `json:"machine"`
	Vars        []byte  `json:"vars,omitempty"`
	Seed        bool    `json:"seed,omitempty"` // it has a seed, as a piece of hardware
	Accelerator string  `json:"accelerator"`
}

func (f *frozen) Stood() time.Duration { return f.stood }

func (f *frozen) Close() error { return errors.Join(f.memory.Close(), f.state.Close()) }

// Freeze has QEMU write its state without the memory, which is a file of its own. From then on that file belongs to the forks: the
// VE goes on with a private mapping of it, as its forks do.
func (m *Model) Freeze(ctx context.Context, ve model.Spec, still func(ctx context.Context) error) (model.Frozen, error) {
	f, err := m.freeze(ctx, ve, still)
	if err != nil {
		return nil, fmt.Errorf("freeze vm %q: %w", ve.Name, err)
	}
	return f, nil
}

func (m *Model) freeze(ctx context.Context, ve model.Spec, still func(ctx context.Context) error) (_ *frozen, err error) {
	q, err := m.openMonitor(ctx, ve)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	status, err := q.status(ctx)
	if err != nil {
		return nil, err
	}
	if status != "running" {
		return nil, api.Errorf(api.Precondition, "it is %s: resume it first, for its forks get their identity from inside", status)
	}
	if err := m.answersInside(ctx, ve); err != nil {
		return nil, err
	}
	if err := q.tidy(ctx); err != nil {
		return nil, err
	}
	f, err := m.hardware(ve)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.memory.Close()
			f.state.Close()
		}
	}()
	at, err := findMemory(ve)
	if err != nil {
		return nil, err
	}
	if f.state, err = makeMemory(0); err != nil {
		return nil, err
	}
	if f.memory, err = at.freezable(ctx, ve); err != nil {
		return nil, err
	}
	if err := q.do(ctx, "migrate-set-capabilities", capabilities(true, forkCopy, []string{"events"})); err != nil {
		return nil, err
	}
	if err := q.addState(ctx, f.state, os.O_WRONLY); err != nil {
		return nil, err
	}
	if err := syncFile(ve.Root.Disk); err != nil { // so that little is left of that when it stands still
		return nil, err
	}
	if err := writeJSON(movingFile(ve), moving{Version: moveVersion}); err != nil {
		return nil, err
	}
	if err := allowForks(ve); err != nil {
		return nil, err
	}
	hasten(ve)
	began := time.Now()
	err = q.takeState(ctx, still)
	if err == nil {
		err = at.freeze(ctx, q, f.memory)
	}
	// Whatever happened, and whoever gave up, it goes on.
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerPatience)
	defer cancel()
	if err == nil {
		err = q.do(back, "cont", nil)
	}
	f.stood = time.Since(began)
	return f, errors.Join(err, q.takeBack(back, ve, false))
}

// addState gives QEMU the file of a state, for reading or writing.
func (m *monitor) addState(ctx context.Context, state *os.File, flag int) error {
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(state.Fd())), flag, 0) // with a place in it of its own
	if err != nil {
		return err
	}
	defer f.Close()
	return m.AddFD(ctx, stateSet, f)
}

var stateURI = map[string]any{"uri": "file:/dev/fdset/" + strconv.Itoa(stateSet)}

// answersInside says whether the agent is there, without which a fork can't be told who it is.
func (m *Model) answersInside(ctx context.Context, ve model.Spec) error {
	asking, cancel := context.WithTimeout(ctx, agentHaltPatience)
	defer cancel()
	if err := m.AgentPing(asking, ve); err != nil && ctx.Err() == nil {
		return api.Errorf(api.Precondition, "no guest agent answers in it, from which a fork gets its identity: let it finish booting, install qemu-guest-agent, or clone it when it is stopped")
	}
	return ctx.Err()
}

// hardware is what a fork must have alike.
func (m *Model) hardware(ve model.Spec) (*frozen, error) {
	f := &frozen{facts: facts{Version: factsVersion, ID: ve.ID, Name: ve.Name, Seed: ve.CloudInit.UserData != ""}}
	if err := readJSON(filepath.Join(ve.Dir, "machine.json"), &f.facts.Machine); err != nil {
		return nil, err
	}
	var r running
	if err := readJSON(runningFile(ve), &r); err != nil {
		return nil, err
	}
	f.facts.Accelerator = r.Accelerator
	var err error
	f.facts.Vars, err = readIfThere(varsFile(ve))
	return f, err
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// takeState stops the VE, and takes its devices' state and its volume.
func (m *monitor) takeState(ctx context.Context, still func(ctx context.Context) error) error {
	if err := m.do(ctx, "stop", nil); err != nil { // its disk is flushed then
		return err
	}
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error { return still(ctx) })
	both.Go(func() error {
		if err := m.do(ctx, "migrate", stateURI); err != nil {
			return err
		}
		return m.await(ctx, 2*time.Millisecond, func() (bool, error) {
			got, err := m.migration(ctx)
			if err == nil {
				err = got.failed()
			}
			return got.Status == "completed", err
		})
	})
	return both.Wait()
}

// Thaw implements model.Forker.
func (m *Model) Thaw(ctx context.Context, ve model.Spec) error {
	if mark, err := readMoving(ve); err != nil || mark == nil {
		return err
	}
	if pid, err := holder(ve); err != nil || pid == 0 {
		return err
	}
	if err := m.takeBack(ctx, ve, false); err != nil {
		return fmt.Errorf("thaw vm %q: %w", ve.Name, err)
	}
	return nil
}

// freezable is a file with the memory, as far as it can be told while the VE runs: its own, when no one else has that; else a new
// one, with what the VE has in common with its forks.
func (m memory) freezable(ctx context.Context, ve model.Spec) (*os.File, error) {
	if !m.private {
		return os.Open(m.file)
	}
	old, err := os.Open(m.file)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	f, err := makeMemory(memorySize(ve))
	if err != nil {
		return nil, err
	}
	if err := copyData(ctx, f, old); err != nil {
		f.Close()
		return nil, fmt.Errorf("copy the memory: %w", err)
	}
	return f, nil
}

// copyData copies what a file has, but not its holes, to the same places in another.
func copyData(ctx context.Context, to, from *os.File) error {
	for offset := int64(0); ; {
		start, err := unix.Seek(int(from.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no more
			return nil
		} else if err != nil {
			return err
		}
		if offset, err = unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := copyRange(ctx, to, from, start, offset); err != nil {
			return err
		}
	}
}

// copyRange copies bytes from one file in memory to the same place in another.
func copyRange(ctx context.Context, to, from *os.File, start, end int64) error {
	if _, err := unix.Seek(int(to.Fd()), start, unix.SEEK_SET); err != nil {
		return err
	}
	for start < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Sendfile(int(to.Fd()), int(from.Fd()), &start, int(min(end-start, 64<<20)))
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("it has become shorter")
		}
	}
	return nil
}

// freeze leaves the memory to f for good, while the VE stands still: what it has written since it was forked goes there, and it gets a
// private mapping of that.
func (m memory) freeze(ctx context.Context, q *monitor, f *os.File) error {
	if m.private {
		if err := m.copyOwn(f); err != nil {
			return err
		}
	}
	return m.mapPrivate(ctx, q, f)
}

// copyOwn writes the pages that are this QEMU's own to f.
func (m memory) copyOwn(f *os.File) error {
	own, err := m.ownPages()
	if err != nil {
		return err
	}
	from, err := os.Open(filepath.Join("/proc", strconv.Itoa(m.pid), "mem"))
	if err != nil {
		return err
	}
	defer from.Close()
	buf := make([]byte, 1<<20)
	for _, r := range own {
		for at := r.start; at < r.end; {
			n := min(r.end-at, uint64(len(buf)))
			if _, err := from.ReadAt(buf[:n], int64(m.start+at)); err != nil {
				return fmt.Errorf("read the memory: %w", err)
			}
			if _, err := f.WriteAt(buf[:n], int64(at)); err != nil {
				return err
			}
			at += n
		}
	}
	return nil
}

// mapPrivate puts a private mapping of f in the place of the memory, which QEMU does not notice: for it the memory is still the file
// that it was started with. The VE stands still, or has not begun.
func (m memory) mapPrivate(ctx context.Context, q *monitor, f *os.File) error {
	if err := q.GetFD(ctx, forkMemory, f); err != nil { // until tidy
		return err
	}
	number, err := numberOf(m.pid, f)
	if err != nil {
		return err
	}
	_, err = remoteCall(m.pid, unix.SYS_MMAP, [6]uint64{
		m.start, m.end - m.start, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_FIXED | unix.MAP_NORESERVE, uint64(number), 0,
	})
	if err != nil {
		return fmt.Errorf("map the memory: %w", err)
	}
	return nil
}

// numberOf finds a descriptor of another process that is of the same open file as f is.
func numberOf(pid int, f *os.File) (int, error) {
	var want unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &want); err != nil {
		return 0, err
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Ino == want.Ino && stat.Dev == want.Dev {
			return strconv.Atoi(e.Name())
		}
	}
	return 0, fmt.Errorf("process %d does not have the file", pid)
}
