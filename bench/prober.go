package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// probeEach is how often the bench's own prober asks.
const probeEach = 5 * time.Millisecond

// seen is what the prober tells at its end, in milliseconds.
type seen struct {
	ICMP float64 `json:"icmp"` // longest time without an answer of the VE's kernel
	UDP  float64 `json:"udp"`  // of the load in it
	Sent int     `json:"sent"`
	Late float64 `json:"late"` // longest time between two questions: what is shorter can't be told
}

// gap is the longest time between two answers.
type gap struct {
	mu      sync.Mutex // guards what follows
	last    time.Time
	longest time.Duration
}

func (g *gap) answered() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if !g.last.IsZero() {
		g.longest = max(g.longest, now.Sub(g.last))
	}
	g.last = now
}

func (g *gap) told() float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last.IsZero() {
		return -1
	}
	return milliseconds(max(g.longest, time.Since(g.last)))
}

// probe asks an address each 5 ms, its kernel and the load, until ctx ends or standard input does.
func probe(ctx context.Context, address string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	icmp, err := net.Dial("ip4:icmp", address)
	if err != nil {
		return err
	}
	defer icmp.Close()
	udp, err := net.Dial("udp4", net.JoinHostPort(address, fmt.Sprint(loadPort)))
	if err != nil {
		return err
	}
	defer udp.Close()
	var kernel, service gap
	own := uint16(os.Getpid())
	go listenTo(icmp, &kernel, func(p []byte) bool {
		if len(p) >= 20 && p[0]>>4 == 4 { // with its IP header
			p = p[int(p[0]&15)*4:]
		}
		return len(p) >= 8 && p[0] == 0 && binary.BigEndian.Uint16(p[4:]) == own
	})
	go listenTo(udp, &service, func(p []byte) bool { return bytes.HasPrefix(p, []byte("echo")) })
	tick := time.NewTicker(probeEach)
	defer tick.Stop()
	var s seen
	for before := time.Now(); ; {
		select {
		case <-ctx.Done():
			s.ICMP, s.UDP = kernel.told(), service.told()
			return json.NewEncoder(os.Stdout).Encode(s)
		case <-tick.C:
		}
		s.Sent++
		s.Late, before = max(s.Late, milliseconds(time.Since(before))), time.Now()
		_, _ = icmp.Write(echoRequest(own, uint16(s.Sent)))
		_, _ = udp.Write([]byte("echo"))
	}
}

// listenTo notes answers until the connection is closed. That nobody listens there yet is an error of one read.
func listenTo(conn net.Conn, g *gap, is func([]byte) bool) {
	buffer := make([]byte, 2048)
	for {
		n, err := conn.Read(buffer)
		if err == nil && is(buffer[:n]) {
			g.answered()
		} else if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// echoRequest is a ping: RFC 792.
func echoRequest(id, number uint16) []byte {
	p := []byte{8, 0, 0, 0, byte(id >> 8), byte(id), byte(number >> 8), byte(number)}
	sum := uint32(0)
	for i := 0; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[2:], ^uint16(sum))
	return p
}

// ask tells the load at an address something, once it is there, and prints the answer.
func ask(ctx context.Context, address, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := net.Dial("udp4", net.JoinHostPort(address, fmt.Sprint(loadPort)))
	if err != nil {
		return err
	}
	defer conn.Close()
	for ctx.Err() == nil {
		if _, err = tell(conn, "echo", 200*time.Millisecond); err == nil {
			break
		}
		<-time.After(100 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("the load at %s does not answer: %w", address, err)
	}
	if text == "echo" {
		return nil
	}
	answer, err := tell(conn, text, 2*time.Minute)
	for err == nil && strings.HasPrefix(answer, "echo") {
		answer, err = tell(conn, "", 2*time.Minute) // one that came late
	}
	if err == nil && strings.HasPrefix(answer, "error") {
		err = fmt.Errorf("tell the load at %s to %s: %s", address, text, answer)
	}
	fmt.Println(answer)
	return err
}

// tell sends a text, if any, and waits for an answer.
func tell(conn net.Conn, text string, patience time.Duration) (string, error) {
	if text != "" {
		if _, err := conn.Write([]byte(text)); err != nil {
			return "", err
		}
	}
	buffer := make([]byte, 2048)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	n, err := conn.Read(buffer)
	return string(buffer[:n]), err
}

// prober is a running probe.
type prober struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   bytes.Buffer
	err   bytes.Buffer
}

func startProber(ctx context.Context, cmd *exec.Cmd) (*prober, error) {
	p := &prober{cmd: cmd}
	cmd.Stdout, cmd.Stderr = &p.out, &p.err
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = stdin
	return p, cmd.Start()
}

// stop ends it a moment after what was to be seen.
func (p *prober) stop() (s seen, err error) {
	<-time.After(300 * time.Millisecond)
	_ = p.stdin.Close()
	if err := p.cmd.Wait(); err != nil {
		return s, fmt.Errorf("prober: %w: %s", err, p.err.String())
	}
	return s, decode(p.out.String(), &s)
}
