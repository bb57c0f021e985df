package lab

import (
	"bufio"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"polder/api"
)

// ask sends a request to a host's agent and waits for the answer.
func (l *Lab) ask(ctx context.Context, n int, req request) (answer, error) {
	conn, err := l.dialAgent(ctx, n)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if req.Now != 0 {
		req.Now = time.Now().UnixNano() // connecting may have taken seconds
	}
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return answer{}, err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	var a answer
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	return a, err
}

func (b machines) exec(ctx context.Context, name string, _ int, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	n, err := b.l.number(name)
	if err != nil {
		return 0, err
	}
	conn, err := b.l.dialAgent(ctx, n)
	if err != nil {
		return 0, api.Errorf(api.Unavailable, "run in lab host %s: %w", name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	req := &execRequest{Argv: argv, Env: execEnv()}
	terminal, restore := rawTerminal(stdin, stdout)
	defer restore()
	if terminal != nil {
		req.TTY = sizeOf(terminal)
	}
	if err := json.NewEncoder(conn).Encode(request{Exec: req}); err != nil {
		return 0, api.Errorf(api.Unavailable, "run in lab host %s: %w", name, err)
	}
	out := &sender{enc: gob.NewEncoder(conn)}
	ended := make(chan struct{})
	defer close(ended)
	go sendInput(out, stdin)
	go sendSignals(out, terminal, ended)
	code, err := receiveOutput(conn, stdout, stderr)
	if ctx.Err() != nil {
		return 0, api.Errorf(api.Cancelled, "run in lab host %s: %w", name, ctx.Err())
	}
	if err != nil {
		return 0, api.Errorf(api.Unavailable, "run in lab host %s: the connection ended: %w", name, err)
	}
	return code, nil
}

// receiveOutput writes what comes until the command has ended.
func receiveOutput(conn io.Reader, stdout, stderr io.Writer) (int, error) {
	in := gob.NewDecoder(conn)
	for {
		var m message
		if err := in.Decode(&m); err != nil {
			return 0, err
		}
		var err error
		switch {
		case m.Ended:
			return m.Code, nil
		case len(m.Stdout) > 0 && stdout != nil:
			_, err = stdout.Write(m.Stdout)
		case len(m.Stderr) > 0 && stderr != nil:
			_, err = stderr.Write(m.Stderr)
		}
		if err != nil {
			return 0, err
		}
	}
}

// rawTerminal hands the terminal, when input and output are one, over to the command: keys go there as they are.
func rawTerminal(stdin io.Reader, stdout io.Writer) (*os.File, func()) {
	in, ok1 := stdin.(*os.File)
	out, ok2 := stdout.(*os.File)
	if ok1 && ok2 && term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd())) {
		if state, err := term.MakeRaw(int(in.Fd())); err == nil {
			return in, func() { _ = term.Restore(int(in.Fd()), state) }
		}
	}
	return nil, func() {}
}

func sizeOf(terminal *os.File) *ttySize {
	cols, rows, err := term.GetSize(int(terminal.Fd()))
	if err != nil {
		return &ttySize{Rows: 24, Cols: 80}
	}
	return &ttySize{Rows: uint16(rows), Cols: uint16(cols)}
}

func sendInput(out *sender, stdin io.Reader) {
	if stdin != nil {
		buf := make([]byte, 32<<10)
		for {
			n, err := stdin.Read(buf)
			if n > 0 && out.send(message{Stdin: buf[:n]}) != nil {
				return
			}
			if err != nil {
				break
			}
		}
	}
	_ = out.send(message{StdinEnd: true})
}

// sendSignals hands on what this process gets until the command has ended.
func sendSignals(out *sender, terminal *os.File, ended <-chan struct{}) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, append(forwarded, syscall.SIGWINCH)...)
	defer signal.Stop(signals)
	for {
		select {
		case <-ended:
			return
		case s := <-signals:
			switch {
			case s != syscall.SIGWINCH:
				_ = out.send(message{Signal: int(s.(syscall.Signal))})
			case terminal != nil:
				_ = out.send(message{Resize: sizeOf(terminal)})
			}
		}
	}
}
