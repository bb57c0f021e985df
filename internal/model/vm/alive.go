package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
	"polder/internal/model"
	"polder/internal/qmp"
)

// running is written before each start.
type running struct {
	BootID      string    `json:"boot_id"` // of the host
	Accelerator string    `json:"accelerator"`
	StartedAt   time.Time `json:"started_at"`
}

func runningFile(ve model.Spec) string { return ve.Dir + "/running.json" }

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// holder is the process that holds the lock on the VE's pidfile: its QEMU. 0: none runs.
func holder(ve model.Spec) (pid int, err error) {
	// The directory is the VE's user's: whatever lies there in the file's place must neither lead elsewhere nor block.
	fd, err := unix.Open(pidFile(ve), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", pidFile(ve), err)
	}
	defer unix.Close(fd)
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lock); err != nil {
		return 0, fmt.Errorf("lock of %s: %w", pidFile(ve), err)
	}
	if lock.Type == unix.F_UNLCK || lock.Pid <= 0 {
		return 0, nil
	}
	return int(lock.Pid), nil
}

// find watches the VE's QEMU; nil when it does not run.
func find(ve model.Spec) (*model.Watch, error) {
	pid, err := holder(ve)
	if err != nil || pid == 0 {
		return nil, err
	}
	w, err := model.WatchPID(pid)
	if api.KindOf(err) == api.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// It still holds the lock while we hold its pidfd, so the one is the other's.
	if again, err := holder(ve); err != nil || again != pid {
		w.Close()
		return nil, err
	}
	return w, nil
}

// adoptPatience is how long Adopt waits for QEMU to say whether the VE is paused; a busy QEMU is taken to be running.
const adoptPatience = 500 * time.Millisecond

// Adopt finds the VE's QEMU by its lock on the pidfile. Of a VE on the move it tells what it will be when the move is over:
// whether that is so here is for Keep or Enter to see to; one whose move is over is calmed.
func (m *Model) Adopt(ctx context.Context, ve model.Spec) (p model.Process, paused, ok bool, err error) {
	w, err := find(ve)
	if err != nil || w == nil {
		return model.Process{}, false, false, err
	}
	p, err = m.process(ve, w)
	if err != nil {
		w.Close()
		return model.Process{}, false, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, adoptPatience)
	defer cancel()
	if end, err := readMoving(ve); err != nil || end != nil {
		return p, err == nil && end.Paused, true, err
	}
	calm(ve)
	status, err := queryStatus(ctx, ve)
	return p, err == nil && status == "paused", true, nil
}

// process tells the caller of a QEMU that runs, and of its end when that comes.
func (m *Model) process(ve model.Spec, w *model.Watch) (model.Process, error) {
	var r running
	if err := readJSON(runningFile(ve), &r); err != nil {
		return model.Process{}, err
	}
	a := m.attached(ve)
	exited := make(chan model.Exit, 1)
	go func() {
		defer close(exited)
		if status, ok := keepLogShort(ve, w.Exited); ok {
			_, halting := a.halting.Load(w.PID)
			exited <- ended(ve, status, halting)
		}
	}()
	return model.Process{PID: w.PID, Accelerator: r.Accelerator, Exited: exited}, nil
}

// Pause stops the VE's CPUs; its memory stays.
func (m *Model) Pause(ctx context.Context, ve model.Spec) error {
	return m.switchCPUs(ctx, ve, "pause", "stop")
}

// Resume lets the VE's CPUs run on.
func (m *Model) Resume(ctx context.Context, ve model.Spec) error {
	return m.switchCPUs(ctx, ve, "resume", "cont")
}

// answerPatience bounds every command to QEMU that takes no time by itself.
const answerPatience = 10 * time.Second

func (m *Model) switchCPUs(ctx context.Context, ve model.Spec, verb, do string) error {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	c, err := m.dial(ctx, ve)
	if err == nil {
		defer c.Close()
		err = c.Execute(ctx, do, nil, nil)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(api.Unavailable, "%s vm %q: %w", verb, ve.Name, err)
	}
	if err != nil {
		return fmt.Errorf("%s vm %q: %w", verb, ve.Name, err)
	}
	return nil
}

// dial connects to the QMP of a VE that must run.
func (m *Model) dial(ctx context.Context, ve model.Spec) (*qmp.Client, error) {
	if pid, err := holder(ve); err != nil {
		return nil, err
	} else if pid == 0 {
		return nil, notRunning(ve)
	}
	return qmp.Dial(ctx, qmpSocket(ve))
}

func notRunning(ve model.Spec) error {
	return api.Errorf(api.Precondition, "vm %q does not run: polder start %s first", ve.Name, ve.Name)
}

// queryStatus is QEMU's word for the VE's state: "running", "paused", "shutdown", …
func queryStatus(ctx context.Context, ve model.Spec) (string, error) {
	c, err := qmp.Dial(ctx, qmpSocket(ve))
	if err != nil {
		return "", err
	}
	defer c.Close()
	var status struct {
		Status string `json:"status"`
	}
	err = c.Execute(ctx, "query-status", nil, &status)
	return status.Status, err
}
