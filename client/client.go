// Package client is the Go client of Polder's HTTP API: used by the command line, the lab and the tests, and meant for
// other people's programs too.
//
// It owns the transport only: it decodes what the server says and never decides anything. Every error is an *api.Error
// with the kind the server gave; api.Unavailable when no server could be reached. A Client is safe for concurrent use.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"polder/api"
)

// DefaultURL is where a host's daemon listens unless told otherwise.
const DefaultURL = "unix:///run/polder/polder.sock"

// maxAnswer bounds what is read of an answer that is decoded in memory.
const maxAnswer = 256 << 20

// Client talks to one server; any host answers for its cluster.
type Client struct {
	url  string
	base string // prefix of every request's URL, without the final slash
	http *http.Client
}

// New makes a client for unix:///path/to/socket, an absolute path to a socket, or http(s)://host:port. It does not
// connect yet. A malformed url is api.Invalid.
func New(address string) (*Client, error) {
	if strings.HasPrefix(address, "/") {
		address = "unix://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "address %q: want unix:///path or https://host:port", address)
	}
	transport := &http.Transport{
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
		// Without an answer to Expect: 100-continue the body is sent after all.
		ExpectContinueTimeout: 2 * time.Second,
	}
	c := &Client{url: address, http: &http.Client{Transport: transport}}
	switch {
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		var dialer net.Dialer
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Path)
		}
		c.base = "http://polder"
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		c.base = strings.TrimSuffix(address, "/")
	default:
		return nil, api.Errorf(api.Invalid, "address %q: want unix:///path or https://host:port", address)
	}
	return c, nil
}

// Over makes a client whose requests go over a transport that finds the server by itself; name is for errors. Close lets idle
// connections of that transport go.
func Over(name string, transport http.RoundTripper) *Client {
	return &Client{url: name, base: "http://polder", http: &http.Client{Transport: transport}}
}

// URL is the address the client was made for.
func (c *Client) URL() string { return c.url }

// Close lets idle connections go.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call sends body (nil: none) as JSON and decodes the answer into answer (nil: ignored).
func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return api.Errorf(api.Internal, "encode request %s %s: %w", method, path, err)
		}
		reader = bytes.NewReader(data)
	}
	res, err := c.send(ctx, method, path, reader, "application/json")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if answer == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer))
	} else {
		err = json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(answer)
	}
	if err != nil {
		return c.failed(ctx, err)
	}
	return nil
}

// send makes a request and turns an answer that is no success into an error. The caller closes the answer's body.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader, contentType string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "request %s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	if req.ContentLength < 0 || body != nil && req.GetBody == nil {
		req.Header.Set("Expect", "100-continue") // a long body is not sent to a server that refuses it anyway
	}
	return c.do(req)
}

// do makes a request and turns an answer that is no success into an error.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(req.Context(), err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		return nil, Problem(res)
	}
	return res, nil
}

// Problem reads the error out of an answer that is no success.
func Problem(res *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	var p api.Problem
	if json.Unmarshal(data, &p) == nil && p.Kind != "" {
		return p.Err()
	}
	text := strings.TrimSpace(string(data))
	if len(text) > 200 {
		text = text[:200]
	}
	return api.Errorf(api.Internal, "server answered %s: %q; is it another version of polder?", res.Status, text)
}

// failed gives the kind to an error of the transport.
func (c *Client) failed(ctx context.Context, err error) error {
	var known *api.Error
	var urlError *url.Error
	var netError *net.OpError
	switch {
	case errors.As(err, &known):
		return known // from a request body of our own
	case ctx.Err() != nil:
		return &api.Error{Kind: api.Cancelled, Text: "cancelled", Err: ctx.Err()}
	case errors.As(err, &netError) && netError.Op == "dial":
		return &api.Error{Kind: api.Unavailable, Text: fmt.Sprintf("no polder server at %s: %v", c.url, netError.Err), Err: err}
	case errors.As(err, &urlError):
		err = urlError.Err // without the made-up host name
	}
	return api.Errorf(api.Unavailable, "connection to %s broke: %w", c.url, err)
}

// Unreachable says whether err means that no server answered at all.
func Unreachable(err error) bool {
	var netError *net.OpError
	return errors.As(err, &netError) && netError.Op == "dial"
}
