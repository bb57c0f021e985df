package migrate

import (
	"context"
	"net"
	"time"

	"polder/api"
)

const (
	beatEvery = time.Second
	// farewellTime is how long a session goes on when the other end has closed it.
	farewellTime = 30 * time.Second
	// The bytes of a heartbeat.
	alive    = '.'
	farewell = 'x' // this end has closed the session in order
)

// beatAsSource connects the heartbeat and keeps it going.
func (s *Session) beatAsSource() {
	ctx, cancel := context.WithTimeout(s.ctx, firstWord)
	defer cancel()
	conn, err := s.connect(ctx, heartbeat)
	if err != nil {
		s.fail(s.failed(ctx, "begin move "+s.id+" with the other host", err))
		return
	}
	s.beat(conn)
}

// beat says that this end is there, and listens for the other, until the session ends.
func (s *Session) beat(conn net.Conn) {
	defer conn.Close()
	s.spawn(func() { s.listen(conn) })
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for word := byte(alive); ; {
		conn.SetWriteDeadline(time.Now().Add(Silence)) //nolint:errcheck // the write says so too
		_, err := conn.Write([]byte{word})
		switch {
		case word == farewell || s.meeting.Err() != nil && s.ctx.Err() == nil:
			return
		case err != nil:
			s.vanished(err)
			return
		}
		select {
		case <-tick.C:
		case <-s.meeting.Done():
			if api.KindOf(context.Cause(s.meeting)) != api.Cancelled {
				return // the other end is gone, or has said farewell itself
			}
			word = farewell
		}
	}
}

// listen ends the session when the other end says nothing for too long.
func (s *Session) listen(conn net.Conn) {
	words := make([]byte, 64)
	for {
		conn.SetReadDeadline(time.Now().Add(Silence)) //nolint:errcheck // the read says so too
		n, err := conn.Read(words)
		switch {
		case n > 0 && words[n-1] == farewell:
			s.parted()
			return
		case err != nil:
			s.vanished(err)
			return
		}
	}
}

// parted lets no more streams begin, and gives those there are a while to be read to their end.
func (s *Session) parted() {
	cause := api.Errorf(api.Unavailable, "move %s: the other host has ended it", s.id)
	s.part(cause)
	rest := time.NewTimer(farewellTime)
	defer rest.Stop()
	select {
	case <-rest.C:
		s.fail(cause)
	case <-s.Done():
	}
}

func (s *Session) vanished(err error) {
	s.fail(api.Errorf(api.Unavailable, "move %s: the other host vanished: %w", s.id, err))
}
