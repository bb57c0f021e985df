package main

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// loadPort is where the load in a VE listens, by UDP.
const loadPort = 7007

// holderProgram is a process that holds memory: see guest/holder.s.
//
//go:embed guest/holder.bin
var holderProgram []byte

// loadPlace is where holderProgram is put in a VE, and what it writes.
const (
	holderPlace = "/var/tmp/holder"
	filePlace   = "/var/tmp/load"
)

// load is what runs in a VE that is moved: it answers, holds memory in some processes, writes memory and files, as told.
// Everything is one goroutine's but the two writers.
type load struct {
	holders []*os.Process
	memory  []byte
	file    int64 // bytes that were filled

	dirtying, writing context.CancelFunc
	written           atomic.Int64 // bytes, to the file
}

// serveLoad answers until the VE ends.
func serveLoad() error {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: loadPort})
	if err != nil {
		return err
	}
	l := &load{dirtying: func() {}, writing: func() {}}
	buffer := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return err
		}
		answer := buffer[:n]
		if !strings.HasPrefix(string(answer), "echo") {
			if answer, err = l.obey(strings.Fields(string(answer))); err != nil {
				answer = []byte("error: " + err.Error())
			}
		}
		// Who asks while the VE is cut off from the network asks again.
		_, _ = conn.WriteToUDPAddrPort(answer, from)
	}
}

// obey does what it is told; each may be told again.
func (l *load) obey(words []string) ([]byte, error) {
	if len(words) == 0 {
		return nil, errors.New("nothing to do")
	}
	var numbers []int
	for _, w := range words[1:] {
		n, err := strconv.Atoi(w)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q is no number", w)
		}
		numbers = append(numbers, n)
	}
	switch {
	case words[0] == "hold" && len(numbers) == 2:
		return []byte("done"), l.hold(numbers[0], numbers[1])
	case words[0] == "dirty" && len(numbers) == 1:
		l.dirty(numbers[0])
		return []byte("done"), nil
	case words[0] == "fill" && len(numbers) == 1:
		return []byte("done"), l.fill(numbers[0])
	case words[0] == "write" && len(numbers) == 1:
		l.write(numbers[0])
		return []byte("done"), nil
	case words[0] == "written":
		return strconv.AppendInt(nil, l.written.Load(), 10), nil
	}
	return nil, fmt.Errorf("%q: not known", words)
}

// hold spreads memory, in MiB, over processes, this one included.
func (l *load) hold(size, processes int) error {
	l.dirtying()
	for _, p := range l.holders {
		_ = p.Kill()
		_, _ = p.Wait()
	}
	l.holders = nil
	if l.memory != nil {
		_ = unix.Munmap(l.memory)
		l.memory = nil
	}
	if err := os.WriteFile(holderPlace+".new", holderProgram, 0o755); err != nil {
		return err
	}
	if err := os.Rename(holderPlace+".new", holderPlace); err != nil {
		return err
	}
	own := size
	for range processes - 1 {
		part := size / processes
		cmd := exec.Command(holderPlace, strconv.Itoa(part))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return err
		}
		l.holders = append(l.holders, cmd.Process)
		own -= part
	}
	if own == 0 {
		return nil
	}
	var err error
	l.memory, err = unix.Mmap(-1, 0, own<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	scramble(l.memory, uint64(own))
	return err
}

// scramble fills with what neither repeats nor is zero.
func scramble(b []byte, seed uint64) {
	for i := 0; i+8 <= len(b); i += 8 {
		seed = seed*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(b[i:], seed)
	}
}

// every paces a writer.
const every = 10 * time.Millisecond

// dirty writes to so many MiB of the memory a second, page after page, from now on.
func (l *load) dirty(rate int) {
	l.dirtying()
	var ctx context.Context
	ctx, l.dirtying = context.WithCancel(context.Background())
	memory, page := l.memory, os.Getpagesize()
	if rate == 0 || len(memory) == 0 {
		return
	}
	go func() {
		began, done, at := time.Now(), int64(0), 0
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			due := int64(time.Since(began).Seconds() * float64(rate) * (1 << 20) / float64(page))
			// Time in which it stood still is not made up for.
			if most := int64(rate) << 20 / int64(page) / 10; due-done > most {
				began, done, due = time.Now(), 0, most
			}
			for ; done < due; done++ {
				memory[at]++
				at = (at + page) % (len(memory) &^ (page - 1))
			}
		}
	}()
}

// openDisk opens what is written to, and from where on: a file, or, where the load is alone in a VM, the disk behind its file system.
func openDisk() (f *os.File, from int64, err error) {
	const disk, behind = "/dev/vda", 2 << 30
	if _, err := os.Stat(disk); err == nil && os.Getpid() == 1 {
		f, err = os.OpenFile(disk, os.O_RDWR, 0)
		return f, behind, err
	}
	f, err = os.OpenFile(filePlace, os.O_RDWR|os.O_CREATE, 0o600)
	return f, 0, err
}

// fill writes a file of so many MiB, to the disk.
func (l *load) fill(size int) error {
	f, from, err := openDisk()
	if err != nil {
		return err
	}
	defer f.Close()
	l.file = int64(size) << 20
	block := make([]byte, 1<<20)
	for i := range size {
		scramble(block, uint64(i))
		if _, err := f.WriteAt(block, from+int64(i)<<20); err != nil {
			return err
		}
	}
	return f.Sync()
}

// write overwrites the file with so many MiB a second, from now on; the count of what it wrote begins anew.
func (l *load) write(rate int) {
	l.writing()
	var ctx context.Context
	ctx, l.writing = context.WithCancel(context.Background())
	l.written.Store(0)
	size := l.file
	if rate == 0 || size == 0 {
		return
	}
	go func() {
		f, from, err := openDisk()
		if err != nil {
			return
		}
		defer f.Close()
		block := make([]byte, 1<<20)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for seed := uint64(1); ; seed++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			scramble(block, seed^0xabcdef)
			n, err := f.WriteAt(block, from+int64(seed)<<20%size)
			if err != nil || f.Sync() != nil {
				return
			}
			l.written.Add(int64(n))
		}
	}()
}
