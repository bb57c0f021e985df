package client

import (
	"context"
	"net/http"
	"net/url"

	"polder/api"
)

// Publish starts to make an image of a VE. The operation's result is the api.Image.
func (c *Client) Publish(ctx context.Context, name string, req api.PublishRequest) (api.Operation, error) {
	return c.act(ctx, name, "publish", req)
}

// Snapshots lists a VE's snapshots, oldest first.
func (c *Client) Snapshots(ctx context.Context, name string) (list []api.Snapshot, err error) {
	err = c.call(ctx, http.MethodGet, vePath(name)+"/snapshots", nil, &list)
	return list, err
}

// CreateSnapshot starts to take a snapshot of a VE.
func (c *Client) CreateSnapshot(ctx context.Context, name string, req api.SnapshotRequest) (api.Operation, error) {
	return c.act(ctx, name, "snapshots", req)
}

// ScheduleSnapshots has snapshots of a VE taken by themselves.
func (c *Client) ScheduleSnapshots(ctx context.Context, name string, s api.SnapshotSchedule) (ve api.VE, err error) {
	err = c.call(ctx, http.MethodPut, vePath(name)+"/snapshot-schedule", s, &ve)
	return ve, err
}

// UnscheduleSnapshots ends that; those that there are stay.
func (c *Client) UnscheduleSnapshots(ctx context.Context, name string) (ve api.VE, err error) {
	err = c.call(ctx, http.MethodDelete, vePath(name)+"/snapshot-schedule", nil, &ve)
	return ve, err
}

// RestoreSnapshot starts to make a VE what it was when a snapshot was taken.
func (c *Client) RestoreSnapshot(ctx context.Context, name, snapshot string) (api.Operation, error) {
	return c.act(ctx, name, "snapshots/"+url.PathEscape(snapshot)+"/restore", nil)
}

// DeleteSnapshot starts to delete a snapshot.
func (c *Client) DeleteSnapshot(ctx context.Context, name, snapshot string) (op api.Operation, err error) {
	err = c.call(ctx, http.MethodDelete, vePath(name)+"/snapshots/"+url.PathEscape(snapshot), nil, &op)
	return op, err
}
