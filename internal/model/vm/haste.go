package vm

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"polder/internal/model"
)

// A VE on the move goes before others of its host: on a busy one every message between the threads of its two QEMUs would wait for a turn,
// and it stands still for all of them. Where cgroups share out the processor that is a weight, else the nice value of its session
// (sched(7), "autogroup").
const (
	hastyWeight = 10000
	hastyNice   = -12
	// settling is for what follows right upon a move: what has come finds all caches empty, and without KVM its code untranslated.
	settling = time.Second
)

// hasten is undone by calm.
func hasten(ve model.Spec) { setPriority(ve, hastyWeight, hastyNice) }

func calm(ve model.Spec) { setPriority(ve, usualWeight(ve), 0) }

// calmSoon lets a VE that has come settle first; a daemon that dies meanwhile calms it when it adopts it.
func calmSoon(ve model.Spec) { time.AfterFunc(settling, func() { calm(ve) }) }

// setPriority does what can be done here: it is about speed only.
func setPriority(ve model.Spec, weight, nice int) {
	dir, err := cgroupDir(ve)
	if err != nil {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, "cpu.weight"), []byte(strconv.Itoa(weight)), 0); err == nil {
		return
	}
	pid, err := holder(ve)
	if err != nil || pid == 0 {
		return
	}
	if err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "autogroup"), []byte(strconv.Itoa(nice)), 0); err != nil {
		slog.Debug("a vm keeps its priority", "ve", ve.Name, "error", err)
	}
}
