package cli

import (
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"polder/api"
)

// escape is Ctrl-], which leaves a console.
const escape = 0x1d

// terminal is the user's terminal while a program in a VE has it.
type terminal struct {
	size    api.Resize // zero: this is no terminal
	resize  <-chan api.Resize
	signals chan string // nil unless signals are passed on

	done  chan struct{}
	wait  sync.WaitGroup
	state *term.State // nil: not in raw mode
	fd    int
	once  sync.Once
}

// takeTerminal puts standard input in raw mode, if it is a terminal and raw is wanted, and watches its size. restore
// must be called whatever happens.
func (a *app) takeTerminal(raw bool) (*terminal, error) {
	t := &terminal{done: make(chan struct{}), fd: int(a.stdin.Fd())}
	if !raw || !term.IsTerminal(t.fd) {
		return t, nil
	}
	t.size = windowSize(t.fd)
	state, err := term.MakeRaw(t.fd)
	if err != nil {
		return nil, api.Errorf(api.Internal, "put the terminal in raw mode: %w", err)
	}
	t.state = state
	t.watchSize()
	return t, nil
}

// watchSize sends the new size at every change of it.
func (t *terminal) watchSize() {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	resize := make(chan api.Resize)
	t.resize = resize
	t.wait.Go(func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-changed:
				select {
				case resize <- windowSize(t.fd):
				case <-t.done:
					return
				}
			case <-t.done:
				return
			}
		}
	})
}

// restore gives the terminal back as it was. May be called twice.
func (t *terminal) restore() {
	t.once.Do(func() {
		close(t.done)
		t.wait.Wait()
		if t.state != nil {
			term.Restore(t.fd, t.state) //nolint:errcheck // nothing more can be done about it
		}
	})
}

func windowSize(fd int) api.Resize {
	cols, rows, err := term.GetSize(fd)
	if err != nil || cols <= 0 || rows <= 0 {
		return api.Resize{}
	}
	return api.Resize{Rows: uint16(min(rows, 1<<16-1)), Cols: uint16(min(cols, 1<<16-1))}
}

// escapeReader passes input on until the escape key.
type escapeReader struct {
	r     io.Reader
	leave func()
	left  bool
}

func (e *escapeReader) Read(p []byte) (int, error) {
	if e.left {
		return 0, io.EOF
	}
	n, err := e.r.Read(p)
	for i, key := range p[:n] {
		if key == escape {
			e.left = true
			e.leave()
			return i, io.EOF
		}
	}
	return n, err
}
