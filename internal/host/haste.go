package host

import (
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// haste lets this daemon go before the VEs while it copies one that stands still, or is about to: on a busy host it would wait for its
// turn like any of them. It works where the kernel shares out by session first (sched(7), "autogroup"); what VEs run is in
// sessions of its own.
type haste struct {
	set func(hurry bool)

	mu    sync.Mutex // guards count, and the order of sets
	count int        // of those who are in a hurry
}

func newHaste() *haste { return &haste{set: setSessionNice} }

// hastened is the session's nice value then; that of criu and of what it runs is their own.
const hastened = -12

// linger is for what follows right upon a copy: the decision, and that the VE goes on.
const linger = time.Second

// begin is called by who is in a hurry; the function that it returns when that is over. Neither blocks.
func (h *haste) begin() (end func()) {
	h.change(1)
	return func() { time.AfterFunc(linger, func() { h.change(-1) }) }
}

func (h *haste) change(by int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.count > 0
	h.count += by
	if hurry := h.count > 0; hurry != before {
		h.set(hurry)
	}
}

// setSessionNice changes a session only that is this program's own, as a service's is: not that of a terminal.
func setSessionNice(hurry bool) {
	if leader, err := unix.Getsid(0); err != nil || leader != os.Getpid() {
		return
	}
	nice := 0
	if hurry {
		nice = hastened
	}
	if err := os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0); err != nil {
		slog.Debug("the daemon's session keeps its priority", "error", err)
	}
}
