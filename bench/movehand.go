package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"polder/internal/command"
	"polder/internal/criu"
)

// By hand a process is moved as CRIU's manual has it: dump, copy, restore, one after the other. It is a plain process of the lab's hosts, the
// same program that is the single service of a container: nothing but its memory is to be carried.
const (
	handPort = "7450"
	handDir  = "/run/bench-hand"
	// handPID is high, so that it is free at the other host too.
	handPID = 40000
)

// byHand moves such a process there and back, turns times in all, and says how long it stood still each time, in milliseconds.
func (m *moves) byHand(ctx context.Context, size, processes, turns int) (took sample, err error) {
	from := "h1"
	at := func(host string, words ...string) (string, error) {
		out, err := m.cli(ctx, append([]string{"lab", "exec", host, "--", sharedProgram}, words...)...)
		return strings.TrimSpace(out), err
	}
	if _, err := at(from, insideHandStart); err != nil {
		return took, err
	}
	defer func() {
		_, failed := at(from, insideHandEnd)
		err = errors.Join(err, failed)
	}()
	if _, err := at(from, insideAsk, "127.0.0.1", "hold", strconv.Itoa(size), strconv.Itoa(processes)); err != nil {
		return took, err
	}
	for range turns {
		to := other(from)
		received := make(chan error, 1)
		go func() {
			_, err := at(to, insideHandTake)
			received <- err
		}()
		out, err := at(from, insideHandGive, to)
		if err := errors.Join(err, <-received); err != nil {
			return took, err
		}
		from = to
		ms, err := strconv.ParseFloat(out, 64)
		if err != nil {
			return took, err
		}
		took.add(ms)
	}
	return took, nil
}

// handStart starts the process, without anything of ours: a file that whoever started this program left open is not where criu looks for it.
func handStart() error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(handPID-1)), 0); err != nil {
		return err
	}
	cmd := exec.Command(sharedProgram, insideLoad) //nolint:noctx // it outlives us
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// handProcess is the process, where it is: it may have got a pid a little beyond the one that was wanted.
func handProcess(ctx context.Context) (string, error) {
	out, err := command.Run(ctx, nil, "pgrep", "--full", "--exact", sharedProgram+" "+insideLoad)
	pid := strings.TrimSpace(string(out))
	if err == nil && strings.ContainsAny(pid, "\n") {
		err = fmt.Errorf("several processes are the load: %q", pid)
	}
	return pid, err
}

func handEnd(ctx context.Context) error {
	pid, err := handProcess(ctx)
	if err == nil {
		_, err = command.Run(ctx, nil, "kill", "-KILL", pid)
	}
	return errors.Join(err, os.RemoveAll(handDir))
}

// handImages is an empty directory in memory.
func handImages() (string, error) {
	dir := filepath.Join(handDir, "images")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// handGive dumps and sends the process, and prints how long it took until it ran at the other host.
func handGive(ctx context.Context, to string) error {
	dir, err := handImages()
	if err != nil {
		return err
	}
	pid, err := handProcess(ctx)
	if err != nil {
		return err
	}
	conn, err := dialHand(ctx, net.JoinHostPort(to, handPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	began := time.Now()
	if err := handCRIU(ctx, dir, "dump", "--tree", pid); err != nil {
		return err
	}
	tar := exec.CommandContext(ctx, "tar", "--create", "--directory", dir, ".")
	tar.Stdout, tar.Stderr = conn, os.Stderr
	if err := tar.Run(); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || answer != "ok\n" {
		return fmt.Errorf("restore: %q, %w", answer, err)
	}
	fmt.Println(milliseconds(time.Since(began)))
	return nil
}

// dialHand waits until the other host listens.
func dialHand(ctx context.Context, address string) (net.Conn, error) {
	for {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err == nil || ctx.Err() != nil {
			return conn, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// handTake takes one process and restores it.
func handTake(ctx context.Context) error {
	dir, err := handImages()
	if err != nil {
		return err
	}
	if err := os.WriteFile(holderPlace, holderProgram, 0o755); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+handPort)
	if err != nil {
		return err
	}
	defer listener.Close()
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	tar := exec.CommandContext(ctx, "tar", "--extract", "--directory", dir)
	tar.Stdin, tar.Stderr = conn, os.Stderr
	if err := tar.Run(); err != nil {
		return err
	}
	if err := handCRIU(ctx, dir, "restore", "--restore-detached"); err != nil {
		return err
	}
	_, err = io.WriteString(conn, "ok\n")
	return err
}

// handCRIU runs criu on images; an error has what its log complains of.
func handCRIU(ctx context.Context, dir string, args ...string) error {
	_, err := command.Run(ctx, nil, "criu", append(args, "--images-dir", dir, "--log-file", "criu.log")...)
	if err == nil {
		return nil
	}
	log, _ := os.ReadFile(filepath.Join(dir, "criu.log"))
	return fmt.Errorf("%w: %s", err, criu.Complaints(log))
}
