package migrate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"polder/api"
)

func TestStreamsCarryBothWaysAndEndEachWay(t *testing.T) {
	source, at := pair(t, onLoopback(t), SessionOptions{})
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	var streams sync.WaitGroup
	for _, name := range []string{"memory", "volume/0", "a b%2F"} {
		here, there := both(t, source, at, name)
		streams.Go(func() {
			if n, err := io.Copy(here, bytes.NewReader(data)); err != nil || n != int64(len(data)) {
				t.Errorf("%s: sent %d bytes: %v", name, n, err)
			}
			here.CloseWrite()
			back, err := io.ReadAll(here)
			if err != nil || string(back) != "got all" {
				t.Errorf("%s: answer %q, %v", name, back, err)
			}
			here.Close()
		})
		streams.Go(func() {
			var got bytes.Buffer
			if _, err := io.Copy(&got, there); err != nil || !bytes.Equal(got.Bytes(), data) {
				t.Errorf("%s: received %d bytes: %v", name, got.Len(), err)
			}
			io.WriteString(there, "got all")
			there.Close()
		})
	}
	streams.Wait()
	source.Count(5)
	want := api.Bytes(3 * (len(data) + len("got all")))
	if got := source.Transferred(); got != want+5 {
		t.Errorf("the source counted %d bytes, want %d", got, want+5)
	}
	if got := at.Transferred(); got != want {
		t.Errorf("the target counted %d bytes, want %d", got, want)
	}
}

func TestStreamsThatAreRefused(t *testing.T) {
	h := onLoopback(t)
	secret := NewSecret()
	h.Open("known", secret, loopback, loopback)
	for name, c := range map[string]struct {
		id     string
		secret []byte
	}{
		"unknown move": {"unknown", secret},
		"wrong secret": {"known", NewSecret()},
		"no secret":    {"known", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := Connect(c.id, h.dial, SessionOptions{Secret: c.secret})
			defer s.Close()
			_, err := s.Stream(t.Context(), "memory")
			if api.KindOf(err) != api.NotFound || !strings.Contains(err.Error(), "not expected here") {
				t.Errorf("got %v", err)
			}
			<-s.Done() // its heartbeat was refused as well
			if api.KindOf(s.Err()) != api.NotFound {
				t.Errorf("the session ended with %v", s.Err())
			}
		})
	}
	conn, err := h.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET "+Prefix+"known/memory HTTP/1.1\r\nHost: host\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400") {
		t.Errorf("a plain request got %q, %v", answer, err)
	}
}

func TestANameIsUsedOnce(t *testing.T) {
	source, at := pair(t, onLoopback(t), SessionOptions{})
	both(t, source, at, "x")
	for _, s := range []*Session{source, at} {
		for _, name := range []string{"x", "", heartbeat} {
			if _, err := s.Stream(t.Context(), name); api.KindOf(err) != api.Internal {
				t.Errorf("stream %q: %v", name, err)
			}
		}
	}
}

func TestAStreamThatOnlyOneEndWantsCanBeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, at := pair(t, inBubble(t), SessionOptions{})
		for _, s := range []*Session{source, at} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			start := time.Now()
			_, err := s.Stream(ctx, "lonely")
			cancel()
			if api.KindOf(err) != api.Cancelled || time.Since(start) != time.Hour {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		}
		both(t, source, at, "next") // the session is as good as before
	})
}

func TestAVanishedHostIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := inBubble(t)
		source, at := pair(t, h, SessionOptions{})
		here, there := both(t, source, at, "memory")
		time.Sleep(time.Hour)
		if source.Err() != nil || at.Err() != nil {
			t.Fatalf("while nothing happened: %v; %v", source.Err(), at.Err())
		}
		h.cutLink()
		start := time.Now()
		var ends sync.WaitGroup
		for _, end := range []struct {
			s *Session
			c net.Conn
		}{{source, here}, {at, there}} {
			ends.Go(func() {
				_, err := end.c.Read(make([]byte, 1))
				if took := time.Since(start); api.KindOf(err) != api.Unavailable || took > Silence+beatEvery {
					t.Errorf("after %v: %v", took, err)
				}
			})
			ends.Go(func() {
				_, err := end.s.Stream(t.Context(), "late")
				if api.KindOf(err) != api.Unavailable {
					t.Errorf("late stream: %v", err)
				}
			})
		}
		ends.Wait()
	})
}

func TestASlowReaderIsNoVanishedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, at := pair(t, inBubble(t), SessionOptions{})
		here, there := both(t, source, at, "volume")
		var sent sync.WaitGroup
		sent.Go(func() {
			if _, err := here.Write(make([]byte, 1<<20)); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Hour)
		if _, err := io.ReadFull(there, make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		sent.Wait()
	})
}

func TestBandwidthIsSharedByTheStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, at := pair(t, inBubble(t), SessionOptions{Bandwidth: api.MiB})
		start := time.Now()
		var all sync.WaitGroup
		for _, name := range []string{"a", "b", "c"} {
			here, there := both(t, source, at, name)
			all.Go(func() {
				here.Write(make([]byte, 4<<20))
				here.CloseWrite()
			})
			all.Go(func() { io.Copy(io.Discard, there) })
		}
		all.Wait()
		if took := time.Since(start); took < 11*time.Second || took > 12*time.Second {
			t.Errorf("12 MiB at 1 MiB/s took %v", took)
		}
	})
}

func TestASourceThatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := inBubble(t).Open("op1", NewSecret(), loopback, loopback)
		_, err := at.Stream(t.Context(), "memory")
		if api.KindOf(err) != api.Unavailable {
			t.Errorf("got %v", err)
		}
	})
}

func TestClosingOneEndIsToldToTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, at := pair(t, inBubble(t), SessionOptions{})
		here, there := both(t, source, at, "memory")
		var sent sync.WaitGroup
		sent.Go(func() {
			io.WriteString(here, "the end")
			here.Close()
		})
		waiting := make(chan error)
		go func() {
			_, err := at.Stream(t.Context(), "never")
			waiting <- err
		}()
		if got, err := io.ReadAll(there); string(got) != "the end" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		sent.Wait()
		source.Close()
		if err := <-waiting; api.KindOf(err) != api.Unavailable || !strings.Contains(err.Error(), "has ended it") {
			t.Errorf("got %v", err)
		}
		if err := at.Err(); err != nil {
			t.Errorf("the other end failed at once: %v", err)
		}
		time.Sleep(farewellTime + time.Second)
		if at.Err() == nil {
			t.Error("nobody ends the target's session")
		}
	})
}

func TestOpenAgainEndsTheSessionBefore(t *testing.T) {
	h := onLoopback(t)
	source, first := pair(t, h, SessionOptions{})
	_, there := both(t, source, first, "x")
	h.Open("op1", NewSecret(), loopback, loopback)
	if _, err := there.Read(make([]byte, 1)); api.KindOf(err) != api.Cancelled {
		t.Errorf("got %v", err)
	}
}

// A stream that is cut must not look as if it had ended in order.
func TestACutStreamIsNoEndedOne(t *testing.T) {
	source, at := pair(t, onLoopback(t), SessionOptions{})
	here, there := both(t, source, at, "memory")
	io.WriteString(here, "half")
	if _, err := io.ReadFull(there, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	source.Close()
	if _, err := io.ReadAll(there); err == nil {
		t.Error("the target took a cut stream for a whole one")
	}
}

func TestAFileOfAStream(t *testing.T) {
	source, at := pair(t, onLoopback(t), SessionOptions{})
	here, there := both(t, source, at, "pages")
	file, err := here.File()
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("page"), 1<<18)
	var tool sync.WaitGroup
	tool.Go(func() {
		defer file.Close()
		if _, err := file.Write(data); err != nil {
			t.Error(err)
		}
		unix.Shutdown(int(file.Fd()), unix.SHUT_WR)
		answer, err := io.ReadAll(file)
		if string(answer) != "thanks" || err != nil {
			t.Errorf("the tool read %q, %v", answer, err)
		}
	})
	var got bytes.Buffer
	if _, err := io.Copy(&got, there); err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("received %d bytes: %v", got.Len(), err)
	}
	io.WriteString(there, "thanks")
	there.Close()
	tool.Wait()
}

func TestAToolThatDiesEndsItsStream(t *testing.T) {
	source, at := pair(t, onLoopback(t), SessionOptions{})
	here, there := both(t, source, at, "pages")
	file, err := here.File()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(file, "some")
	file.Close()
	if got, err := io.ReadAll(there); string(got) != "some" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestCloseDoesNotWaitForATool(t *testing.T) {
	source, at := pair(t, onLoopback(t), SessionOptions{})
	here, _ := both(t, source, at, "pages")
	file, err := here.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	source.Close()
	if _, err := io.ReadAll(file); err != nil {
		t.Errorf("the tool read %v", err)
	}
	if _, err := source.Stream(t.Context(), "more"); api.KindOf(err) != api.Cancelled {
		t.Errorf("got %v", err)
	}
}

func TestAHostThatCannotBeReached(t *testing.T) {
	broken := errors.New("no route")
	s := Connect("op1", func(context.Context) (net.Conn, error) { return nil, broken }, SessionOptions{})
	defer s.Close()
	if _, err := s.Stream(t.Context(), "memory"); api.KindOf(err) != api.Unavailable || !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := Measure(t.Context(), func(context.Context) (net.Conn, error) { return nil, broken }); api.KindOf(err) != api.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestMeasure(t *testing.T) {
	link, err := Measure(t.Context(), onLoopback(t).dial)
	if err != nil {
		t.Fatal(err)
	}
	if link.Bandwidth < api.MiB || link.RTT <= 0 || link.RTT > time.Second {
		t.Errorf("loopback: %+v", link)
	}
}
