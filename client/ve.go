package client

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"polder/api"
)

// Launch starts to make a VE.
func (c *Client) Launch(ctx context.Context, req api.LaunchRequest) (op api.Operation, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/ves", req, &op)
	return op, err
}

// VEs lists all VEs, sorted by name.
func (c *Client) VEs(ctx context.Context) (ves []api.VE, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/ves", nil, &ves)
	return ves, err
}

// VE finds one by name.
func (c *Client) VE(ctx context.Context, name string) (ve api.VE, err error) {
	err = c.call(ctx, http.MethodGet, vePath(name), nil, &ve)
	return ve, err
}

// Start starts a stopped VE.
func (c *Client) Start(ctx context.Context, name string) (api.Operation, error) {
	return c.act(ctx, name, "start", nil)
}

// Stop halts a VE.
func (c *Client) Stop(ctx context.Context, name string, req api.StopRequest) (api.Operation, error) {
	return c.act(ctx, name, "stop", req)
}

// Restart stops and starts a VE.
func (c *Client) Restart(ctx context.Context, name string, req api.StopRequest) (api.Operation, error) {
	return c.act(ctx, name, "restart", req)
}

// Pause freezes a running VE.
func (c *Client) Pause(ctx context.Context, name string) (api.Operation, error) {
	return c.act(ctx, name, "pause", nil)
}

// Resume lets a paused VE go on.
func (c *Client) Resume(ctx context.Context, name string) (api.Operation, error) {
	return c.act(ctx, name, "resume", nil)
}

// Clone starts to make VEs that begin as this one is.
func (c *Client) Clone(ctx context.Context, name string, req api.CloneRequest) (api.Operation, error) {
	return c.act(ctx, name, "clone", req)
}

// Delete removes a VE and its volume, whether or not it runs.
func (c *Client) Delete(ctx context.Context, name string) (op api.Operation, err error) {
	err = c.call(ctx, http.MethodDelete, vePath(name), nil, &op)
	return op, err
}

// Logs writes a VE's console output to w; with follow it goes on until ctx is done.
func (c *Client) Logs(ctx context.Context, name string, follow bool, w io.Writer) error {
	path := vePath(name) + "/logs"
	if follow {
		path += "?follow=true"
	}
	res, err := c.send(ctx, http.MethodGet, path, nil, "")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return c.copy(ctx, w, res.Body)
}

func (c *Client) act(ctx context.Context, name, verb string, req any) (op api.Operation, err error) {
	err = c.call(ctx, http.MethodPost, vePath(name)+"/"+verb, req, &op)
	return op, err
}

func vePath(name string) string { return "/v1/ves/" + url.PathEscape(name) }
