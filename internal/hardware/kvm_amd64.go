package hardware

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/kvm.h.
const (
	kvmGetAPIVersion    = 0xae00
	kvmCreateVM         = 0xae01
	kvmGetVCPUMmapSize  = 0xae04
	kvmGetSupportedCPID = 0xc008ae05
	kvmCreateVCPU       = 0xae41
	kvmSetUserMemory    = 0x4020ae46
	kvmSetTSSAddr       = 0xae47
	kvmRun              = 0xae80
	kvmGetRegs          = 0x8090ae81
	kvmSetRegs          = 0x4090ae82
	kvmGetSregs         = 0x8138ae83
	kvmSetSregs         = 0x4138ae84
	kvmSetCPUID2        = 0x4008ae90

	kvmAPIVersion = 12
	kvmExitIO     = 2
)

type kvmRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	_                                      [8]uint64
	rip, rflags                            uint64
}

type kvmSegment struct {
	base                                       uint64
	limit                                      uint32
	selector                                   uint16
	kind, present, dpl, db, s, l, g, avl, _, _ uint8
}

type kvmSregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt         kvmSegment
	gdt, idt                                [2]uint64
	cr0, cr2, cr3, cr4, cr8, efer, apicBase uint64
	_                                       [4]uint64
}

type kvmMemory struct {
	slot, flags              uint32
	physical, size, userAddr uint64
}

type kvmCPUID struct {
	count, _ uint32
	entries  [256][10]uint32
}

// Where things are in the little machine's memory.
const (
	testPML4    = 0x1000
	testPDPT    = 0x2000
	testPD      = 0x3000
	testCode    = 0x4000
	testData    = 0x5000
	testMemory  = 0x8000
	testPort    = 0x10
	testTimeout = 500 * time.Millisecond
)

// testProgram works on 64-bit registers, memory and SSE, which every 64-bit kernel and compiler counts on.
//
//	mov  rax, 0x123456789abcdef0
//	mov  rcx, 0x1111111111111111
//	add  rax, rcx
//	mov  [0x5000], rax
//	movq xmm0, rax
//	movq rdx, xmm0
//	out  0x10, al
//	hlt
const testProgram = "\x48\xb8\xf0\xde\xbc\x9a\x78\x56\x34\x12" +
	"\x48\xb9\x11\x11\x11\x11\x11\x11\x11\x11" +
	"\x48\x01\xc8" +
	"\x48\xa3\x00\x50\x00\x00\x00\x00\x00\x00" +
	"\x66\x48\x0f\x6e\xc0" +
	"\x66\x48\x0f\x7e\xc2" +
	"\xe6\x10" +
	"\xf4"

const testResult = uint64(0x123456789abcdef0 + 0x1111111111111111)

// tryKVM runs testProgram in long mode.
func tryKVM(kvm *os.File) error {
	v, err := unix.IoctlRetInt(int(kvm.Fd()), kvmGetAPIVersion)
	if err != nil {
		return fmt.Errorf("ask for its API version: %w", err)
	}
	if v != kvmAPIVersion {
		return fmt.Errorf("API version %d, want %d", v, kvmAPIVersion)
	}
	m, err := newTestMachine(kvm)
	if err != nil {
		return err
	}
	var thread atomic.Int64
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread.Store(int64(unix.Gettid()))
		done <- m.run()
	}()
	timer := time.NewTimer(testTimeout)
	defer timer.Stop()
	select {
	case err := <-done:
		m.close()
		return err
	case <-timer.C:
	}
	// A CPU that hangs leaves when it is told to and a signal comes; SIGURG is one that the Go runtime takes lightly.
	m.cpuState[1] = 1 // immediate_exit
	for range 100 {
		_ = unix.Tgkill(os.Getpid(), int(thread.Load()), unix.SIGURG)
		select {
		case <-done: //nolint:errcheck // that it hung is what matters
			m.close()
			return errors.New("it hangs")
		case <-time.After(time.Millisecond):
		}
	}
	return errors.New("it hangs and cannot be stopped") // its memory stays mapped
}

type testMachine struct {
	vm, vcpu         int
	memory, cpuState []byte
}

func (m *testMachine) close() {
	for _, mapped := range [][]byte{m.cpuState, m.memory} {
		if mapped != nil {
			_ = unix.Munmap(mapped)
		}
	}
	for _, fd := range []int{m.vcpu, m.vm} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func newTestMachine(kvm *os.File) (_ *testMachine, err error) {
	m := &testMachine{vm: -1, vcpu: -1}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if m.vm, err = unix.IoctlRetInt(int(kvm.Fd()), kvmCreateVM); err != nil {
		m.vm = -1
		return nil, fmt.Errorf("make a virtual machine: %w", err)
	}
	if m.memory, err = unix.Mmap(-1, 0, testMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map its memory: %w", err)
	}
	region := kvmMemory{size: testMemory, userAddr: uint64(uintptr(unsafe.Pointer(&m.memory[0])))}
	if err = kvmIoctl(m.vm, kvmSetUserMemory, unsafe.Pointer(&region)); err != nil {
		return nil, fmt.Errorf("give it memory: %w", err)
	}
	// Only Intel CPUs want this, and those that do not ignore it.
	_ = unix.IoctlSetInt(m.vm, kvmSetTSSAddr, 0xfffbd000)
	if m.vcpu, err = unix.IoctlRetInt(m.vm, kvmCreateVCPU); err != nil {
		m.vcpu = -1
		return nil, fmt.Errorf("make a CPU: %w", err)
	}
	size, err := unix.IoctlRetInt(int(kvm.Fd()), kvmGetVCPUMmapSize)
	if err != nil {
		return nil, fmt.Errorf("size of a CPU's state: %w", err)
	}
	if m.cpuState, err = unix.Mmap(m.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map a CPU's state: %w", err)
	}
	var cpuid kvmCPUID
	cpuid.count = uint32(len(cpuid.entries))
	if err = kvmIoctl(int(kvm.Fd()), kvmGetSupportedCPID, unsafe.Pointer(&cpuid)); err == nil {
		err = kvmIoctl(m.vcpu, kvmSetCPUID2, unsafe.Pointer(&cpuid))
	}
	if err != nil {
		return nil, fmt.Errorf("set what the CPU can do: %w", err)
	}
	return m, m.enterLongMode()
}

// enterLongMode maps the first 2 MiB one to one and points a 64-bit CPU at the program.
func (m *testMachine) enterLongMode() error {
	binary.LittleEndian.PutUint64(m.memory[testPML4:], testPDPT|3) // present, writable
	binary.LittleEndian.PutUint64(m.memory[testPDPT:], testPD|3)
	binary.LittleEndian.PutUint64(m.memory[testPD:], 0|0x83) // and 2 MiB large
	copy(m.memory[testCode:], testProgram)

	var s kvmSregs
	if err := kvmIoctl(m.vcpu, kvmGetSregs, unsafe.Pointer(&s)); err != nil {
		return fmt.Errorf("read its special registers: %w", err)
	}
	s.cr3 = testPML4
	s.cr4 = 1<<5 | 1<<9 | 1<<10     // PAE, OSFXSR, OSXMMEXCPT
	s.cr0 = 1 | 1<<1 | 1<<5 | 1<<31 // PE, MP, NE, PG
	s.efer = 1<<8 | 1<<10           // LME, LMA
	s.cs = kvmSegment{limit: ^uint32(0), selector: 8, kind: 11, present: 1, s: 1, l: 1, g: 1}
	data := kvmSegment{limit: ^uint32(0), selector: 16, kind: 3, present: 1, s: 1, db: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	if err := kvmIoctl(m.vcpu, kvmSetSregs, unsafe.Pointer(&s)); err != nil {
		return fmt.Errorf("enter long mode: %w", err)
	}
	regs := kvmRegs{rip: testCode, rsp: testMemory, rflags: 2}
	if err := kvmIoctl(m.vcpu, kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
		return fmt.Errorf("set its registers: %w", err)
	}
	return nil
}

// run lets the CPU go until the program writes to its port.
func (m *testMachine) run() error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m.vcpu), kvmRun, 0)
		if errno == unix.EINTR && m.cpuState[1] == 0 {
			continue // a signal of the Go runtime
		}
		if errno != 0 {
			return fmt.Errorf("run: %w", errno)
		}
		break
	}
	reason := binary.LittleEndian.Uint32(m.cpuState[8:])
	port := binary.LittleEndian.Uint16(m.cpuState[34:])
	if reason != kvmExitIO || port != testPort {
		return fmt.Errorf("it stopped for reason %d", reason)
	}
	var regs kvmRegs
	if err := kvmIoctl(m.vcpu, kvmGetRegs, unsafe.Pointer(&regs)); err != nil {
		return fmt.Errorf("read its registers: %w", err)
	}
	stored := binary.LittleEndian.Uint64(m.memory[testData:])
	if regs.rdx != testResult || stored != testResult {
		return fmt.Errorf("it computed %#x and %#x, want %#x", regs.rdx, stored, testResult)
	}
	return nil
}

func kvmIoctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
