package vm

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"syscall"

	"polder/internal/model"
)

// Ended says how the VE's last run ended, from what that run left behind; for a daemon that was not there to see it.
func (m *Model) Ended(ve model.Spec) (model.Exit, bool) {
	var r running
	if err := readJSON(runningFile(ve), &r); err != nil {
		return model.Exit{}, false
	}
	if pid, err := holder(ve); err != nil || pid != 0 {
		return model.Exit{}, false
	}
	if boot, err := bootID(); err == nil && boot != r.BootID {
		return model.Exit{Crashed: true, Reason: "the host was restarted"}, true
	}
	return ended(ve, model.ExitStatus{}, false), true
}

// ended judges the end of a QEMU. halting says that this daemon was ending it; another may have been.
func ended(ve model.Spec, status model.ExitStatus, halting bool) model.Exit {
	if _, err := os.Lstat(haltingFile(ve)); err == nil || halting {
		return model.Exit{Reason: "stopped"}
	}
	log := logEnd(qemuLog(ve))
	if !status.Known {
		// QEMU removes its pidfile when it exits by itself. That it then did so because of a failure is all but
		// impossible: it would have said so, and what fails does so before the VE runs.
		if _, err := os.Lstat(pidFile(ve)); err == nil {
			return model.Exit{Crashed: true, Reason: withLog("qemu was killed", log)}
		} else if !errors.Is(err, os.ErrNotExist) {
			return model.Exit{Crashed: true, Reason: withLog(status.String(), log)}
		}
	}
	switch {
	case status.Signal == syscall.SIGKILL && outOfMemory(ve):
		return model.Exit{Crashed: true, Reason: "qemu was killed: its cgroup is out of memory"}
	case status.Signal != 0:
		return model.Exit{Crashed: true, Reason: withLog("qemu: "+status.String(), log)}
	case status.Code != 0 && log == "":
		return model.Exit{Crashed: true, Reason: "its kernel panicked (qemu: " + status.String() + "): see polder logs " + ve.Name}
	case status.Code != 0:
		return model.Exit{Crashed: true, Reason: withLog("qemu: "+status.String(), log)}
	case strings.Contains(log, "terminating on signal"):
		// Somebody's kill: not the system's own will.
		return model.Exit{Crashed: true, Reason: withLog("qemu", log)}
	}
	return model.Exit{Reason: "powered off"}
}

func withLog(text, log string) string {
	if log == "" {
		return text
	}
	return text + ": " + log
}

// logEnd is the last line of a log, for a reason in one line; "" when there is none.
func logEnd(path string) string {
	const most = 500
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	buf := make([]byte, 4096)
	n, _ := f.ReadAt(buf, max(0, info.Size()-int64(len(buf))))
	text := bytes.TrimSpace(buf[:n])
	text = text[bytes.LastIndexByte(text, '\n')+1:]
	return strings.ToValidUTF8(string(text[:min(len(text), most)]), "�")
}
