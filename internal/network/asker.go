package network

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asker sends a probe's requests and reads their answers.
type asker struct {
	echo   echo
	every  time.Duration
	socket int
	gauge  *gauge
	wall   time.Time // the time of day when CLOCK_MONOTONIC was 0
}

func newAsker(e echo, every time.Duration, socket int) *asker {
	return &asker{echo: e, every: every, socket: socket, gauge: newGauge(every), wall: time.Now().Add(-clock(unix.CLOCK_MONOTONIC))}
}

// probeBuffer has room for the answers of some seconds, should the program not get to read them.
const probeBuffer = 1 << 20

// probePriority is the real-time priority of a probe's thread: the least one, which is above all other programs.
const probePriority = 1

// openEcho opens a socket for the IPv4 frames of a link, with the kernel's time of their arrival.
func openEcho(link int) (int, error) {
	protocol := uint16(etherIPv4>>8 | etherIPv4<<8&0xff00) // in network order
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("open packet socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, probeBuffer),
		unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link}),
	)
	if err != nil {
		_ = unix.Close(socket)
		return 0, fmt.Errorf("prepare packet socket: %w", err)
	}
	return socket, nil
}

// run asks and reads in turn until ctx is done, on a thread that ends with the calling goroutine, and reports what was seen each
// reportEvery and at the end. Answers need not be read at once: they bear the time when they came.
func (a *asker) run(ctx context.Context, report func(Observed)) {
	runtime.LockOSThread()
	// Not allowed everywhere, and only a matter of precision.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: probePriority}, 0)
	next, reported := clock(unix.CLOCK_MONOTONIC), time.Duration(0)
	for number := uint64(1); ctx.Err() == nil; number++ {
		a.ask(number)
		if next += a.every; next < clock(unix.CLOCK_MONOTONIC) {
			next = clock(unix.CLOCK_MONOTONIC) // late: what was missed is not made up for
		}
		sleepUntil(next)
		a.read()
		if now := clock(unix.CLOCK_MONOTONIC); now-reported >= reportEvery {
			report(a.gauge.observed(now, a.wall))
			reported = now
		}
	}
	report(a.gauge.observed(clock(unix.CLOCK_MONOTONIC), a.wall))
}

// reportEvery is how old what Seen says may be.
const reportEvery = 20 * time.Millisecond

func (a *asker) ask(number uint64) {
	at := clock(unix.CLOCK_MONOTONIC)
	// A full queue, or a link that is gone: it was asked for all that, and will not be answered.
	_, _ = unix.Write(a.socket, a.echo.request(number))
	a.gauge.request(number, at)
}

// read notes the answers that have come.
func (a *asker) read() {
	// The kernel's times are of the clock that may be set.
	ahead := clock(unix.CLOCK_REALTIME) - clock(unix.CLOCK_MONOTONIC)
	var frame [2048]byte
	var control [64]byte
	for {
		n, controls, _, _, err := unix.Recvmsg(a.socket, frame[:], control[:], unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue // the latter is said once
		}
		if err != nil {
			return
		}
		if number, ok := a.echo.answer(frame[:n]); ok {
			a.gauge.answer(number, arrival(control[:controls])-ahead)
		}
	}
}

// arrival is the kernel's time of a packet's arrival, or now.
func arrival(control []byte) time.Duration {
	messages, err := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		if err == nil && m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			return time.Duration((*unix.Timespec)(unsafe.Pointer(&m.Data[0])).Nano())
		}
	}
	return clock(unix.CLOCK_REALTIME)
}

func clock(id int32) time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(id, &t) // both clocks are always there
	return time.Duration(t.Nano())
}

func sleepUntil(at time.Duration) {
	t := unix.NsecToTimespec(at.Nanoseconds())
	for errors.Is(unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &t, nil), unix.EINTR) {
	}
}
