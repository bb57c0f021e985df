package migrate

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"time"

	"polder/api"
	"polder/client"
)

const (
	// Prefix of the paths of moves: a stream is at Prefix + id + "/" + its name.
	Prefix = "/peer/v1/moves/"
	// protocol is what a connection is upgraded to: nothing but the stream's bytes.
	protocol    = "polder-stream"
	proofHeader = "Polder-Proof"
)

// proof shows that whoever made it knows the secret of the move.
func proof(secret []byte, id, name string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(id + "\n" + name)) //nolint:errcheck // it never fails
	return hex.EncodeToString(mac.Sum(nil))
}

// upgrade makes the connection of a stream at the source; it blocks until the target has asked for the stream too.
func (s *Session) upgrade(ctx context.Context, dial Dial, name string) (net.Conn, error) {
	header := http.Header{proofHeader: {proof(s.secret, s.id, name)}}
	return upgrade(ctx, dial, Prefix+url.PathEscape(s.id)+"/"+url.PathEscape(name), header)
}

// upgrade dials, and asks for the connection to become a stream.
func upgrade(ctx context.Context, dial Dial, path string, header http.Header) (_ net.Conn, err error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // the conn is broken if it fails
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host"+path, nil)
	if err != nil {
		return nil, api.Errorf(api.Internal, "request %s: %w", path, err)
	}
	req.Header = header
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	answer := bufio.NewReader(conn)
	res, err := http.ReadResponse(answer, req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer res.Body.Close()
		return nil, client.Problem(res)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return ahead(conn, answer)
}

// accept answers an upgrade request at the target: from now on the connection is the caller's.
func accept(w http.ResponseWriter) (net.Conn, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, api.Errorf(api.Internal, "take over a connection for a stream: %w", err)
	}
	err = conn.SetDeadline(time.Time{})
	if err == nil {
		_, err = conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ahead(conn, rw.Reader)
}

// ahead gives a connection back what a reader has read ahead of it.
func ahead(conn net.Conn, r *bufio.Reader) (net.Conn, error) {
	if r.Buffered() == 0 {
		return conn, nil
	}
	early, err := r.Peek(r.Buffered())
	return &aheadConn{Conn: conn, early: early}, err
}

// aheadConn is a connection whose first bytes have been read already. Only one goroutine reads.
type aheadConn struct {
	net.Conn
	early []byte
}

func (a *aheadConn) Read(p []byte) (int, error) {
	if len(a.early) > 0 {
		n := copy(p, a.early)
		a.early = a.early[n:]
		return n, nil
	}
	return a.Conn.Read(p)
}

// NetConn is what cut closes.
func (a *aheadConn) NetConn() net.Conn { return rawConn(a.Conn) }

// rawConn is the connection below a secure one.
func rawConn(conn net.Conn) net.Conn {
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return secure.NetConn()
	}
	return conn
}

// upgradable says why a request can't become a stream.
func upgradable(r *http.Request) error {
	if r.Method != http.MethodGet || r.Header.Get("Upgrade") != protocol || r.ProtoMajor != 1 {
		return api.Errorf(api.Invalid, "%s %s: want an HTTP/1.1 request with Upgrade: %s", r.Method, r.URL.Path, protocol)
	}
	return nil
}

// refuse answers a request with an error.
func refuse(w http.ResponseWriter, err error) {
	p := api.ProblemOf(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p) //nolint:errcheck // nobody left to tell
}
